/** How a drawing lies in its window: places of the window are `scale` times those of the drawing, plus an offset. */

export interface View {
  scale: number;
  x: number;
  y: number;
}

export interface Size {
  width: number;
  height: number;
}

const LEAST = 0.1;
const MOST = 32;

/** The whole drawing in the middle of the window, as large as it may be. */
export function fitted(drawing: Size, window: Size): View {
  const scale = Math.min(window.width / drawing.width, window.height / drawing.height) || 1;
  return { scale, x: (window.width - drawing.width * scale) / 2, y: (window.height - drawing.height * scale) / 2 };
}

/** Nearer by a factor; what lies under this place of the window stays there. */
export function zoomed(view: View, factor: number, x: number, y: number): View {
  const scale = Math.min(MOST, Math.max(LEAST, view.scale * factor));
  const by = scale / view.scale;
  return { scale, x: x - (x - view.x) * by, y: y - (y - view.y) * by };
}

export function panned(view: View, dx: number, dy: number): View {
  return { ...view, x: view.x + dx, y: view.y + dy };
}

/** The place of the drawing under a place of the window. */
export function placeAt(view: View, x: number, y: number): { x: number; y: number } {
  return { x: (x - view.x) / view.scale, y: (y - view.y) / view.scale };
}

/** The size to draw at for pictures of this size: small models still get room for a fine hand. */
export function drawingSize(picture: Size, least = 512): Size {
  const factor = Math.max(1, least / Math.max(picture.width, picture.height));
  return { width: Math.round(picture.width * factor), height: Math.round(picture.height * factor) };
}

/** The largest part of `source` with the sides' ratio of `target`, from its middle. */
export function covered(source: Size, target: Size): { x: number; y: number; width: number; height: number } {
  const ratio = target.width / target.height;
  const width = Math.min(source.width, source.height * ratio);
  const height = width / ratio;
  return { x: (source.width - width) / 2, y: (source.height - height) / 2, width, height };
}
