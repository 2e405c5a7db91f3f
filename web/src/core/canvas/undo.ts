/** Undo and redo: of drawings the 64 x 64 tiles that changed, of everything else a pair of functions. */

import type { Box, Surface } from "./surface";

export const TILE = 64;
export const UNDO_LIMIT = 100;
export const UNDO_BYTES = 192 * 2 ** 20;

export interface Change {
  undo(): void;
  redo(): void;
  bytes: number;
}

interface Tile {
  x: number;
  y: number;
  width: number;
  height: number;
  pixels: Uint8ClampedArray;
}

/** Keeps the tiles of one surface as they were before something is drawn on them. */
export class Recorder {
  private before = new Map<number, Tile>();

  constructor(private surface: Surface) {}

  /** Something is going to be drawn inside this box. */
  touch(box: Box): void {
    const across = Math.ceil(this.surface.width / TILE);
    const [first, last] = [tileOf(box.left), tileOf(Math.min(box.right, this.surface.width) - 0.001)];
    const [top, bottom] = [tileOf(box.top), tileOf(Math.min(box.bottom, this.surface.height) - 0.001)];
    for (let row = top; row <= bottom; row += 1) {
      for (let column = first; column <= last; column += 1) {
        const number = row * across + column;
        if (!this.before.has(number)) this.before.set(number, read(this.surface, column * TILE, row * TILE));
      }
    }
  }

  /** The tiles that are different now, as one change; null where there is none. */
  finished(): Change | null {
    const pairs = [...this.before.values()]
      .map((old) => ({ old, now: read(this.surface, old.x, old.y) }))
      .filter(({ old, now }) => !equal(old.pixels, now.pixels));
    if (!pairs.length) return null;
    return {
      undo: () => pairs.forEach(({ old }) => write(this.surface, old)),
      redo: () => pairs.forEach(({ now }) => write(this.surface, now)),
      bytes: pairs.reduce((sum, { old }) => sum + 2 * old.pixels.length, 0),
    };
  }
}

/** What was done, newest last, and what was taken back. */
export class Undo {
  private done: Change[] = [];
  private undone: Change[] = [];
  private bytes = 0;

  push(change: Change): void {
    this.undone.forEach(({ bytes }) => (this.bytes -= bytes));
    this.undone = [];
    this.done.push(change);
    this.bytes += change.bytes;
    while (this.done.length > 1 && (this.done.length > UNDO_LIMIT || this.bytes > UNDO_BYTES)) this.bytes -= this.done.shift()?.bytes ?? 0;
  }

  /** Take the last change back; whether there was one. */
  undo(): boolean {
    const change = this.done.pop();
    if (change) {
      change.undo();
      this.undone.push(change);
    }
    return change !== undefined;
  }

  redo(): boolean {
    const change = this.undone.pop();
    if (change) {
      change.redo();
      this.done.push(change);
    }
    return change !== undefined;
  }

  forget(): void {
    this.done = [];
    this.undone = [];
    this.bytes = 0;
  }

  get depth(): number {
    return this.done.length;
  }

  get ahead(): number {
    return this.undone.length;
  }
}

function tileOf(place: number): number {
  return Math.max(0, Math.floor(place / TILE));
}

function read(surface: Surface, x: number, y: number): Tile {
  const [width, height] = [Math.min(TILE, surface.width - x), Math.min(TILE, surface.height - y)];
  return { x, y, width, height, pixels: surface.read(x, y, width, height) };
}

function write(surface: Surface, tile: Tile): void {
  surface.write(tile.x, tile.y, tile.width, tile.height, tile.pixels);
}

function equal(a: Uint8ClampedArray, b: Uint8ClampedArray): boolean {
  return a.every((value, index) => value === b[index]);
}
