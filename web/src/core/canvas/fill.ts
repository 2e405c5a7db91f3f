/** Fill: every pixel that is reached from a place over pixels of nearly its colour. */

const NEAR = 40;

/** 1 for every pixel that belongs to the area, a pixel wider than it, so that no seam stays at soft edges. */
export function areaAt(pixels: Uint8ClampedArray, width: number, height: number, x: number, y: number, near = NEAR): Uint8Array {
  const area = new Uint8Array(width * height);
  const start = y * width + x;
  const like = (place: number) => [0, 1, 2].every((part) => Math.abs((pixels[4 * place + part] ?? 0) - (pixels[4 * start + part] ?? 0)) <= near);
  const open = [start];
  area[start] = 1;
  while (open.length) {
    const place = open.pop() as number;
    for (const next of neighbours(place, width, height)) {
      if (area[next] || !like(next)) continue;
      area[next] = 1;
      open.push(next);
    }
  }
  return wider(area, width, height);
}

/** Paint the area with a colour (red, green, blue from 0 to 255). */
export function paint(pixels: Uint8ClampedArray, area: Uint8Array, [red, green, blue]: [number, number, number]): void {
  area.forEach((inside, place) => {
    if (inside) pixels.set([red, green, blue, 255], 4 * place);
  });
}

/** "#ff8000" as three numbers. */
export function parts(colour: string): [number, number, number] {
  const number = Number.parseInt(colour.slice(1), 16);
  return [(number >> 16) & 255, (number >> 8) & 255, number & 255];
}

/** Three numbers as "#ff8000". */
export function hex(red: number, green: number, blue: number): string {
  return `#${[red, green, blue].map((part) => part.toString(16).padStart(2, "0")).join("")}`;
}

function neighbours(place: number, width: number, height: number): number[] {
  const column = place % width;
  const found = [];
  if (column > 0) found.push(place - 1);
  if (column < width - 1) found.push(place + 1);
  if (place >= width) found.push(place - width);
  if (place < width * (height - 1)) found.push(place + width);
  return found;
}

function wider(area: Uint8Array, width: number, height: number): Uint8Array {
  const result = area.slice();
  area.forEach((inside, place) => {
    if (inside) for (const next of neighbours(place, width, height)) result[next] = 1;
  });
  return result;
}
