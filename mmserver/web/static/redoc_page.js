"use strict";

// ReDoc's footer asks its maker's host for a logo. The page's policy forbids that; this keeps it from being tried.
const image = HTMLImageElement.prototype;
const src = Object.getOwnPropertyDescriptor(image, "src");
const ours = (url) => (new URL(url, location.href).origin === location.origin ? url : "data:,");
Object.defineProperty(image, "src", { ...src, set(url) { src.set.call(this, ours(url)); } });
image.setAttribute = function (name, value) {
  Element.prototype.setAttribute.call(this, name, name === "src" ? ours(value) : value);
};

const place = document.getElementById("api");
window.Redoc.init(
  place.dataset.description,
  {
    hideDownloadButtons: true, // the bar has the address
    pathInMiddlePanel: true,
    sortRequiredPropsFirst: true,
    theme: {
      typography: {
        fontFamily: "system-ui, sans-serif",
        headings: { fontFamily: "system-ui, sans-serif" },
        code: { fontFamily: "ui-monospace, Menlo, Consolas, monospace" },
      },
    },
  },
  place,
);
