// pm2 start ecosystem.config.js      (run ./setup.sh once before)
module.exports = {
  apps: [
    {
      name: "mmserver",
      cwd: __dirname,
      script: ".venv/bin/mmserver",
      args: "serve",
      interpreter: "none",
      exec_mode: "fork",
      instances: 1, // more processes: MMSERVER_WORKERS, they share the port; one server uses the data directory
      autorestart: true,
      restart_delay: 2000,
      kill_timeout: 30000,
      env: {
        MMSERVER_PORT: "6300",
      },
    },
  ],
};
