import { describe, expect, test } from "vitest";
import { areaAt, hex, paint, parts } from "../src/core/canvas/fill";
import { boxOf, evened, Line, type Point, widthOf } from "../src/core/canvas/strokes";
import type { Surface } from "../src/core/canvas/surface";
import { Recorder, TILE, Undo, UNDO_LIMIT } from "../src/core/canvas/undo";
import { covered, drawingSize, fitted, placeAt, zoomed } from "../src/core/canvas/view";

class Memory implements Surface {
  readonly pixels: Uint8ClampedArray;

  constructor(readonly width: number, readonly height: number) {
    this.pixels = new Uint8ClampedArray(4 * width * height);
  }

  read(x: number, y: number, width: number, height: number): Uint8ClampedArray {
    const found = new Uint8ClampedArray(4 * width * height);
    for (let row = 0; row < height; row += 1) found.set(this.pixels.subarray(4 * ((y + row) * this.width + x), 4 * ((y + row) * this.width + x + width)), 4 * row * width);
    return found;
  }

  write(x: number, y: number, width: number, height: number, pixels: Uint8ClampedArray): void {
    for (let row = 0; row < height; row += 1) this.pixels.set(pixels.subarray(4 * row * width, 4 * (row + 1) * width), 4 * ((y + row) * this.width + x));
  }

  dot(x: number, y: number): void {
    this.pixels.set([255, 0, 0, 255], 4 * (y * this.width + x));
  }
}

const point = (x: number, y: number, pressure = 0.5): Point => ({ x, y, pressure });

describe("undo", () => {
  test("takes back and does again exactly what was drawn, at ragged edges too", () => {
    const surface = new Memory(2 * TILE + 5, TILE + 3);
    const recorder = new Recorder(surface);
    recorder.touch({ left: 60, top: 60, right: 400, bottom: 400 });
    surface.dot(2 * TILE + 4, TILE + 2);
    surface.dot(TILE, TILE - 1);
    const [drawn, undo] = [surface.pixels.slice(), new Undo()];
    undo.push(recorder.finished()!);
    expect(undo.undo()).toBe(true);
    expect(surface.pixels.every((value) => value === 0)).toBe(true);
    expect(undo.redo()).toBe(true);
    expect(surface.pixels).toEqual(drawn);
    expect([undo.redo(), undo.undo(), undo.undo()]).toEqual([false, true, false]);
  });

  test("keeps only tiles that changed", () => {
    const surface = new Memory(4 * TILE, 4 * TILE);
    const recorder = new Recorder(surface);
    recorder.touch({ left: 0, top: 0, right: 4 * TILE, bottom: 4 * TILE });
    surface.dot(TILE + 1, 2 * TILE + 1);
    expect(recorder.finished()?.bytes).toBe(2 * 4 * TILE * TILE);
    expect(new Recorder(surface).finished()).toBeNull();
  });

  test("keeps at least fifty, forgets the oldest, and forgets what was undone when something new is done", () => {
    const surface = new Memory(TILE, TILE);
    const undo = new Undo();
    const draw = (x: number) => {
      const recorder = new Recorder(surface);
      recorder.touch({ left: 0, top: 0, right: 1, bottom: 1 });
      surface.dot(x, 0);
      undo.push(recorder.finished()!);
    };
    for (let x = 0; x < TILE; x += 1) draw(x);
    expect(undo.depth).toBe(TILE);
    for (let turn = 0; turn < 50; turn += 1) undo.undo();
    expect([surface.pixels[4 * 13], surface.pixels[4 * 14]]).toEqual([255, 0]);
    draw(40);
    expect([undo.ahead, undo.depth]).toEqual([0, 15]);
    const nothing = { undo: () => undefined, redo: () => undefined, bytes: 0 };
    for (let turn = 0; turn < 2 * UNDO_LIMIT; turn += 1) undo.push(nothing);
    expect(undo.depth).toBe(UNDO_LIMIT);
  });
});

describe("strokes", () => {
  test("pieces join, from the first place to the last", () => {
    const line = new Line(point(0, 0), 10);
    const pieces = [line.dot(), ...[point(10, 0), point(20, 10), point(30, 10)].map((next) => line.to(next)), line.end()];
    expect(pieces[0]?.to).toEqual(point(0, 0));
    expect(pieces.at(-1)?.to).toEqual(point(30, 10));
    for (let at = 1; at < pieces.length; at += 1) expect(pieces[at]?.from).toEqual(pieces[at - 1]?.to);
  });

  test("pressure widens, and a mouse draws at full size", () => {
    expect(widthOf(20, 0.5)).toBe(20);
    expect(widthOf(20, 0.1)).toBeLessThan(widthOf(20, 0.3));
    expect(widthOf(20, 0)).toBeGreaterThan(0);
  });

  test("a box holds the bend and half the width", () => {
    expect(boxOf({ from: point(10, 10), bend: point(30, 0), to: point(20, 20), width: 8 })).toEqual({ left: 4, top: -6, right: 36, bottom: 26 });
  });

  test("even shapes are square, even lines lie at 45 degrees", () => {
    expect(evened({ tool: "rect", from: point(0, 0), to: point(10, -4) })).toMatchObject({ x: 10, y: -10 });
    const end = evened({ tool: "line", from: point(0, 0), to: point(10, 9) });
    expect(end.x).toBeCloseTo(end.y);
  });
});

describe("fill", () => {
  test("stops at a line, and goes one pixel under its edge", () => {
    const [width, height] = [7, 3];
    const pixels = new Uint8ClampedArray(4 * width * height).fill(255);
    for (let row = 0; row < height; row += 1) for (const column of [3, 4]) pixels.set([0, 0, 0, 255], 4 * (row * width + column));
    const area = areaAt(pixels, width, height, 0, 1);
    expect([...area.slice(width, 2 * width)]).toEqual([1, 1, 1, 1, 0, 0, 0]);
    paint(pixels, area, [1, 2, 3]);
    expect([...pixels.slice(0, 4)]).toEqual([1, 2, 3, 255]);
    expect([...pixels.slice(4 * 6, 4 * 7)]).toEqual([255, 255, 255, 255]);
  });

  test("colours are read and written", () => {
    expect(parts("#ff8001")).toEqual([255, 128, 1]);
    expect(hex(255, 128, 1)).toBe("#ff8001");
  });
});

describe("view", () => {
  test("what lies under the pointer stays there", () => {
    const view = fitted({ width: 512, height: 256 }, { width: 400, height: 400 });
    const before = placeAt(view, 100, 150);
    const after = placeAt(zoomed(view, 3, 100, 150), 100, 150);
    expect(after.x).toBeCloseTo(before.x);
    expect(after.y).toBeCloseTo(before.y);
    expect(placeAt(view, 0, 100)).toEqual({ x: 0, y: 0 });
  });

  test("zoom has ends", () => {
    const view = { scale: 1, x: 0, y: 0 };
    expect(zoomed(view, 1e9, 0, 0).scale).toBe(32);
    expect(zoomed(view, 1e-9, 0, 0).scale).toBe(0.1);
  });

  test("small pictures are drawn large, with the same ratio", () => {
    expect(drawingSize({ width: 128, height: 64 })).toEqual({ width: 512, height: 256 });
    expect(drawingSize({ width: 1024, height: 768 })).toEqual({ width: 1024, height: 768 });
  });

  test("the middle is kept when the ratio differs", () => {
    expect(covered({ width: 640, height: 360 }, { width: 1, height: 1 })).toEqual({ x: 140, y: 0, width: 360, height: 360 });
  });
});
