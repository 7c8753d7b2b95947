// Shared by the report of visualize.py and the page of search.py: elements, and frames in the shape of the images.
'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const byId = id => document.getElementById(id);

// An element with attributes and children; a string child becomes text.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// An image, or a placeholder where its address is null or leads nowhere.
function picture(address, description, attributes = {}) {
  const placeholder = text => element('div', {class: 'thumb gone', role: 'img', 'aria-label': text}, 'no image');
  if (address === null) return placeholder(description);
  const image = element('img', {class: 'thumb', alt: description, ...attributes});
  image.onerror = () => image.replaceWith(placeholder(image.alt));
  image.onload = () => takeShape(image);
  image.src = address;
  return image;
}

// All frames of ranked lists take the shape of the first loaded image, since most galleries have one shape. Each query's
// frame has its own shape.
let shape = null;
function takeShape(image) {
  const own = image.naturalWidth / image.naturalHeight;
  image.style.setProperty('--own', own);
  if (shape || !image.closest('.ranked')) return;
  shape = Math.min(2, Math.max(0.4, own));
  document.documentElement.style.setProperty('--shape', shape);
}
