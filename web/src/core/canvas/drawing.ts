/** A drawing: white paper, layers on it, a mask, and the hand that draws on one of them. */

import { areaAt, hex, paint, parts } from "./fill";
import { boxOf, drawPiece, drawShape, Line, type Piece, type Point, type Shape, shapeBox, type ShapeTool } from "./strokes";
import { type Box, Sheet } from "./surface";
import { type Change, Recorder, Undo } from "./undo";
import { covered } from "./view";

export const LAYERS_LIMIT = 8;
export const PAPER = "#ffffff";

export type Tool = "brush" | "eraser" | "fill" | "move" | ShapeTool;

export interface Layer {
  id: number;
  name: string;
  sheet: Sheet;
  opacity: number;
  visible: boolean;
}

/** One movement of the hand, enough to do it again. */
export interface Stroke {
  tool: Tool;
  mask: boolean;
  colour: string;
  size: number;
  even: boolean;
  filled: boolean;
  points: Point[];
}

export type Style = Omit<Stroke, "points">;

export class Drawing {
  layers: Layer[] = [];
  active: Layer;
  readonly mask: Sheet;
  readonly whole: Sheet;
  readonly undo = new Undo();
  /** Every movement that still stands, for replaying it. */
  log: Stroke[] = [];
  drawing = false;
  /** Counts up with every visible change. */
  version = 0;
  /** Counts up when the mask may have changed. */
  maskVersion = 0;
  private names = 0;
  private stroke: Stroke | null = null;
  private line: Line | null = null;
  private shape: Shape | null = null;
  private recorder: Recorder | null = null;
  private lifted: { copy: Sheet; from: Point } | null = null;
  private composed = -1;
  private empties = new WeakMap<Sheet, { version: number; blank: boolean }>();

  constructor(readonly width: number, readonly height: number, private changed: () => void) {
    this.mask = new Sheet(width, height);
    this.whole = new Sheet(width, height);
    this.active = this.newLayer();
    this.layers.push(this.active);
  }

  // ------------------------------------------------------------ the hand

  begin(style: Style, point: Point): void {
    this.finish();
    const sheet = style.mask ? this.mask : this.active.sheet;
    this.stroke = { ...style, points: [point] };
    this.recorder = new Recorder(sheet);
    this.drawing = true;
    this.maskVersion += Number(style.mask);
    if (style.tool === "fill") this.fill(sheet, style, point);
    else if (style.tool === "move") this.lift(sheet, point);
    else if (style.tool === "brush" || style.tool === "eraser") {
      this.line = new Line(point, style.size);
      this.drawPieces([this.line.dot()]);
    } else this.shape = { ...style, tool: style.tool, from: point, to: point };
    this.touched();
  }

  extend(points: Point[], even = false): void {
    const last = points.at(-1);
    if (!this.stroke || !last) return;
    this.maskVersion += Number(this.stroke.mask);
    this.stroke.points.push(...points);
    this.stroke.even = even;
    if (this.line) this.drawPieces(points.map((point) => this.line!.to(point)));
    if (this.shape) this.shape = { ...this.shape, to: last, even };
    if (this.lifted) this.place(this.lifted.copy, last.x - this.lifted.from.x, last.y - this.lifted.from.y);
    this.touched();
  }

  /** The hand is lifted: the stroke becomes one change. */
  finish(): void {
    if (!this.stroke || !this.recorder) return;
    if (this.line) this.drawPieces([this.line.end()]);
    if (this.shape) {
      this.recorder.touch(this.clipped(shapeBox(this.shape)));
      drawShape(this.sheet.context, this.coloured(this.shape));
    }
    const stroke = this.stroke;
    this.maskVersion += Number(stroke.mask);
    const change = this.recorder.finished();
    this.stroke = this.line = this.shape = this.recorder = this.lifted = null;
    this.drawing = false;
    if (change) this.logged(change, [...this.log, stroke]);
    this.touched();
  }

  /** The stroke is taken back, as when a second finger comes down. */
  cancel(): void {
    this.maskVersion += 1;
    const change = this.recorder?.finished();
    change?.undo();
    this.stroke = this.line = this.shape = this.recorder = this.lifted = null;
    this.drawing = false;
    this.touched();
  }

  /** Do movements again, one after the other. */
  play(strokes: Stroke[]): void {
    for (const { points, ...style } of strokes) {
      const [first, ...rest] = points;
      if (!first) continue;
      this.begin(style, first);
      this.extend(rest, style.even);
      this.finish();
    }
  }

  /** The colour that is seen at a place. */
  colourAt(point: { x: number; y: number }): string {
    const [red = 0, green = 0, blue = 0] = this.composite().read(Math.floor(point.x), Math.floor(point.y), 1, 1);
    return hex(red, green, blue);
  }

  // ------------------------------------------------------------ layers

  add(name?: string): Layer {
    const layer = this.newLayer(name);
    const [before, active] = [this.layers, this.active];
    const at = this.layers.indexOf(this.active) + 1;
    const after = [...this.layers.slice(0, at), layer, ...this.layers.slice(at)];
    this.arranged({ layers: before, active }, { layers: after, active: layer });
    return layer;
  }

  remove(layer: Layer): void {
    if (this.layers.length === 1) return;
    const [before, active, at] = [this.layers, this.active, this.layers.indexOf(layer)];
    const after = before.filter((one) => one !== layer);
    const next = active === layer ? (after[Math.max(0, at - 1)] as Layer) : active;
    this.arranged({ layers: before, active }, { layers: after, active: next });
  }

  /** One place up (1) or down (-1). */
  shift(layer: Layer, by: 1 | -1): void {
    const at = this.layers.indexOf(layer);
    if (!this.layers[at + by]) return;
    const after = [...this.layers];
    after.splice(at, 1);
    after.splice(at + by, 0, layer);
    this.arranged({ layers: this.layers, active: this.active }, { layers: after, active: this.active });
  }

  choose(layer: Layer): void {
    this.active = layer;
    this.touched();
  }

  look(layer: Layer, looks: Partial<Pick<Layer, "opacity" | "visible">>): void {
    Object.assign(layer, looks);
    this.touched();
  }

  /** A picture on a layer of its own, as large as fits, or covering everything. */
  put(picture: ImageBitmap, name: string): void {
    const full = this.layers.length >= LAYERS_LIMIT;
    const layer = full ? this.active : this.layers.length === 1 && this.empty(this.active.sheet) ? this.active : this.add(name);
    this.change(layer.sheet, (context) => {
      const part = covered(picture, this);
      context.drawImage(picture, part.x, part.y, part.width, part.height, 0, 0, this.width, this.height);
    });
  }

  /** Wipe the active layer, or the mask. */
  clear(mask = false): void {
    const sheet = mask ? this.mask : this.active.sheet;
    this.change(sheet, () => sheet.clear());
  }

  /** Everything away, on all layers; one step of undo. */
  clearAll(): void {
    const changes = [...this.layers.map(({ sheet }) => sheet), this.mask].flatMap((sheet) => this.recorded(sheet, () => sheet.clear()) ?? []);
    if (changes.length) this.logged(together(changes), []);
    this.touched(true);
  }

  /** The active layer larger or smaller, around a place. */
  scale(factor: number, at: { x: number; y: number }): void {
    const { sheet } = this.active;
    const copy = copied(sheet);
    this.change(sheet, (context) => {
      sheet.clear();
      context.setTransform(factor, 0, 0, factor, at.x - at.x * factor, at.y - at.y * factor);
      context.drawImage(copy.canvas, 0, 0);
    });
  }

  mirror(): void {
    const { sheet } = this.active;
    const copy = copied(sheet);
    this.change(sheet, (context) => {
      sheet.clear();
      context.setTransform(-1, 0, 0, 1, this.width, 0);
      context.drawImage(copy.canvas, 0, 0);
    });
  }

  back(): void {
    this.finish();
    if (this.undo.undo()) this.touched(true);
  }

  forth(): void {
    this.finish();
    if (this.undo.redo()) this.touched(true);
  }

  // ------------------------------------------------------------ what is seen

  /** Paper, layers and the shape in the making, as one sheet. */
  composite(): Sheet {
    if (this.composed === this.version) return this.whole;
    const { context } = this.whole;
    context.globalAlpha = 1;
    context.fillStyle = PAPER;
    context.fillRect(0, 0, this.width, this.height);
    for (const layer of this.layers) {
      if (!layer.visible) continue;
      context.globalAlpha = layer.opacity;
      context.drawImage(layer.sheet.canvas, 0, 0);
      if (this.shape && !this.stroke?.mask && layer === this.active) drawShape(context, this.shape);
    }
    context.globalAlpha = 1;
    this.composed = this.version;
    return this.whole;
  }

  /** The shape in the making where it belongs to the mask. */
  get maskShape(): Shape | null {
    return this.stroke?.mask ? this.shape : null;
  }

  /** Whether anything is masked. */
  get masked(): boolean {
    return !this.empty(this.mask);
  }

  /** Whether nothing was drawn on any layer. */
  get blank(): boolean {
    return !this.drawing && this.layers.every(({ sheet }) => this.empty(sheet));
  }

  /** The mask as the protocol has it: white on black. */
  maskPicture(): OffscreenCanvas {
    const { context, canvas } = new Sheet(this.width, this.height);
    context.fillRect(0, 0, this.width, this.height);
    context.drawImage(this.mask.canvas, 0, 0);
    return canvas;
  }

  /** Lays another drawing's pictures on this one, stretched over it. */
  take(other: Drawing): void {
    this.layers = other.layers.map((layer) => ({ ...layer, sheet: stretched(layer.sheet, this.width, this.height) }));
    this.active = this.layers[other.layers.indexOf(other.active)] ?? (this.layers[0] as Layer);
    this.mask.context.drawImage(other.mask.canvas, 0, 0, this.width, this.height);
    this.names = other.names;
    this.touched(true);
  }

  // ------------------------------------------------------------ inside

  /** Looked at once for every change: reading pixels is dear. */
  private empty(sheet: Sheet): boolean {
    const version = sheet === this.mask ? this.maskVersion : this.version;
    const known = this.empties.get(sheet);
    if (known?.version === version) return known.blank;
    const blank = sheet.blank;
    this.empties.set(sheet, { version, blank });
    return blank;
  }

  private get sheet(): Sheet {
    return this.stroke?.mask ? this.mask : this.active.sheet;
  }

  private touched(mask = false): void {
    this.version += 1;
    this.maskVersion += Number(mask);
    this.changed();
  }

  /** Undo takes the log back with the pixels. */
  private logged(change: Change, after: Stroke[]): void {
    const before = this.log;
    const both = (pixels: () => void, log: Stroke[]) => () => { pixels(); this.log = log; };
    this.undo.push({ ...change, undo: both(change.undo, before), redo: both(change.redo, after) });
    this.log = after;
  }

  private newLayer(name?: string): Layer {
    this.names += 1;
    return { id: this.names, name: name ?? `Layer ${this.names}`, sheet: new Sheet(this.width, this.height), opacity: 1, visible: true };
  }

  private arranged(before: Pick<Drawing, "layers" | "active">, after: Pick<Drawing, "layers" | "active">): void {
    const change: Change = { undo: () => Object.assign(this, before), redo: () => Object.assign(this, after), bytes: 64 };
    change.redo();
    this.undo.push(change);
    this.touched();
  }

  private drawPieces(pieces: Piece[]): void {
    const { context } = this.sheet;
    context.strokeStyle = this.stroke?.mask ? "#ffffff" : (this.stroke?.colour ?? "#000000");
    context.globalCompositeOperation = this.stroke?.tool === "eraser" ? "destination-out" : "source-over";
    for (const piece of pieces) {
      this.recorder?.touch(this.clipped(boxOf(piece)));
      drawPiece(context, piece);
    }
    context.globalCompositeOperation = "source-over";
  }

  private coloured(shape: Shape): Shape {
    return this.stroke?.mask ? { ...shape, colour: "#ffffff" } : shape;
  }

  private fill(sheet: Sheet, style: Style, point: Point): void {
    const [x, y] = [Math.floor(point.x), Math.floor(point.y)];
    if (x < 0 || y < 0 || x >= this.width || y >= this.height) return;
    const seen = this.composite().read(0, 0, this.width, this.height);
    this.recorder?.touch({ left: 0, top: 0, right: this.width, bottom: this.height });
    const pixels = sheet.read(0, 0, this.width, this.height);
    paint(pixels, areaAt(seen, this.width, this.height, x, y), style.mask ? [255, 255, 255] : parts(style.colour));
    sheet.write(0, 0, this.width, this.height, pixels);
  }

  private lift(sheet: Sheet, from: Point): void {
    this.recorder?.touch({ left: 0, top: 0, right: this.width, bottom: this.height });
    this.lifted = { copy: copied(sheet), from };
  }

  private place(copy: Sheet, dx: number, dy: number): void {
    this.sheet.clear();
    this.sheet.context.drawImage(copy.canvas, Math.round(dx), Math.round(dy));
  }

  private change(sheet: Sheet, draw: (context: OffscreenCanvasRenderingContext2D) => void): void {
    const change = this.recorded(sheet, draw);
    if (change) this.undo.push(change);
    this.touched(sheet === this.mask);
  }

  private recorded(sheet: Sheet, draw: (context: OffscreenCanvasRenderingContext2D) => void): Change | null {
    const recorder = new Recorder(sheet);
    recorder.touch({ left: 0, top: 0, right: this.width, bottom: this.height });
    sheet.context.save();
    draw(sheet.context);
    sheet.context.restore();
    return recorder.finished();
  }

  private clipped(box: Box): Box {
    return { left: Math.max(0, box.left), top: Math.max(0, box.top), right: box.right, bottom: box.bottom };
  }
}

function together(changes: Change[]): Change {
  return {
    undo: () => changes.forEach((change) => change.undo()),
    redo: () => changes.forEach((change) => change.redo()),
    bytes: changes.reduce((sum, { bytes }) => sum + bytes, 0),
  };
}

function copied(sheet: Sheet): Sheet {
  return stretched(sheet, sheet.width, sheet.height);
}

function stretched(sheet: Sheet, width: number, height: number): Sheet {
  const copy = new Sheet(width, height);
  copy.context.drawImage(sheet.canvas, 0, 0, width, height);
  return copy;
}
