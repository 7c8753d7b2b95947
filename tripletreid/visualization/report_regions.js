// The layer of the report that colours the parts of pictures which make a query and its nearest images near.
const {regions} = data;

// The colours of a map, base64 of int8 [h, w], on a canvas with a pixel per place.
function colours(map) {
  const [height, width] = regions.shape, pixels = new ImageData(width, height);
  const parts = Int8Array.from(atob(map), letter => letter.charCodeAt(0));
  parts.forEach((part, place) => pixels.data.set(
    [...(part > 0 ? regions.near : regions.far), 255 * regions.opacity * Math.abs(part) / 127], 4 * place));
  const canvas = element('canvas', {width, height});
  canvas.getContext('2d').putImageData(pixels, 0, 0);
  return canvas;
}

// Replaces an image, once it is loaded, by a grey copy with the colours of a map.
function colour(image, map) {
  image.addEventListener?.('load', () => {
    const {naturalWidth: width, naturalHeight: height} = image, [top, left, bottom, right] = regions.area;
    const canvas = element('canvas', {class: 'thumb coloured', width, height, role: 'img', 'aria-label': image.alt});
    const drawing = canvas.getContext('2d');
    drawing.drawImage(image, 0, 0);
    drawing.globalCompositeOperation = 'saturation';
    drawing.fillRect(0, 0, width, height);
    drawing.globalCompositeOperation = 'source-over';
    drawing.drawImage(colours(map), left * width, top * height, (right - left) * width, (bottom - top) * height);
    image.replaceWith(canvas);
  });
  return image;
}
