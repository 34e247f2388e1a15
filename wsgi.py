"""The WSGI entry point: `waitress-serve wsgi:app`, serverless adapters and process managers load the app from here."""

from mmserver.app import create_app

app = create_app()
