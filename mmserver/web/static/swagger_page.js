"use strict";

// Everything comes from this server: no validator badge of another host, and requests that are tried out stay here.
const place = document.getElementById("api");
window.SwaggerUIBundle({
  url: place.dataset.description,
  domNode: place,
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  filter: true,
  showCommonExtensions: true,
  tryItOutEnabled: false,
  validatorUrl: null,
  presets: [window.SwaggerUIBundle.presets.apis],
});
