/** The window on the input: draws it, and turns pointers into strokes, pans, zooms and crops. */

import { drawShape, type Point } from "../core/canvas/strokes";
import { fitted, panned, placeAt, type View, zoomed } from "../core/canvas/view";
import { WHOLE } from "../core/capture";
import { change, currentSource, reseed } from "./live";
import * as page from "./state";

const RED = "rgb(255 45 60)";
const MASK_ALPHA = 0.5;
const MOUSE_PRESSURE = 0.5;

export class Stage {
  view: View = { scale: 1, x: 0, y: 0 };
  private context: CanvasRenderingContext2D;
  private fit = true;
  private hand: { x: number; y: number } | null = null;
  private pointers = new Map<number, { x: number; y: number }>();
  private panning = false;
  private space = false;
  private cropFrom: { x: number; y: number } | null = null;
  private mask: OffscreenCanvas | null = null;
  private painted = "";

  constructor(private canvas: HTMLCanvasElement) {
    const context = canvas.getContext("2d");
    if (!context) throw new Error("This browser gives no canvas to draw on. Use a newer one.");
    this.context = context;
    new ResizeObserver(() => this.measure()).observe(canvas);
    const on = <K extends keyof HTMLElementEventMap>(name: K, run: (event: HTMLElementEventMap[K]) => void) => canvas.addEventListener(name, run, { passive: false });
    on("pointerdown", (event) => this.down(event));
    on("pointermove", (event) => this.move(event));
    on("pointerup", (event) => this.up(event));
    on("pointercancel", (event) => this.up(event));
    on("pointerleave", () => (this.hand = null));
    on("wheel", (event) => this.wheel(event));
    on("dblclick", () => (page.part.value = WHOLE));
    on("contextmenu", (event) => event.preventDefault());
    this.measure();
    this.paint();
  }

  /** The whole drawing in the middle again. */
  refit(): void {
    this.fit = true;
  }

  /** While Space is held the hand pans. */
  hold(space: boolean): void {
    this.space = space;
    this.canvas.classList.toggle("panning", space);
  }

  zoom(factor: number): void {
    this.fit = false;
    this.view = zoomed(this.view, factor, this.canvas.width / 2, this.canvas.height / 2);
  }

  // ------------------------------------------------------------ pointers

  private get drawing() {
    return page.input.value === "draw" ? page.drawing.value : null;
  }

  private at(event: { offsetX: number; offsetY: number }): { x: number; y: number } {
    const ratio = this.canvas.width / (this.canvas.clientWidth || 1);
    return { x: event.offsetX * ratio, y: event.offsetY * ratio };
  }

  private point(event: PointerEvent): Point {
    const { x, y } = this.at(event);
    const pressure = event.pointerType === "pen" ? event.pressure : MOUSE_PRESSURE;
    return { ...placeAt(this.view, x, y), pressure };
  }

  private down(event: PointerEvent): void {
    (document.activeElement as HTMLElement | null)?.blur();
    this.pointers.set(event.pointerId, this.at(event));
    this.canvas.setPointerCapture(event.pointerId);
    if (this.pointers.size === 2) {
      this.drawing?.cancel();
      this.panning = true;
    } else if (this.space || event.button === 1) this.panning = true;
    else if (event.button === 0) this.begin(event);
    event.preventDefault();
  }

  private begin(event: PointerEvent): void {
    const drawing = this.drawing;
    if (!drawing) {
      if (page.input.value !== "prompt") this.cropFrom = this.share(this.at(event));
      return;
    }
    const tool = event.altKey ? "picker" : page.tool.value;
    if (tool === "picker") return this.pick(this.point(event));
    reseed();
    page.hint.value = false;
    const [colour] = page.colours.value;
    const style = { tool, mask: page.onMask.value, colour, size: page.brushSize.value, even: event.shiftKey, filled: page.filled.value };
    drawing.begin(style, this.point(event));
    if (tool === "fill") drawing.finish();
  }

  private pick(point: Point): void {
    const drawing = this.drawing;
    if (!drawing || point.x < 0 || point.y < 0 || point.x >= drawing.width || point.y >= drawing.height) return;
    page.colours.value = [drawing.colourAt(point), page.colours.value[1]];
  }

  private move(event: PointerEvent): void {
    const now = this.at(event);
    const before = this.pointers.get(event.pointerId);
    this.hand = event.pointerType === "touch" ? null : now;
    if (!before) return;
    if (this.panning) this.panTo(event.pointerId, before, now);
    else if (this.cropFrom) this.crop(this.cropFrom, this.share(now));
    else if (this.drawing?.drawing) {
      const events = event.getCoalescedEvents?.() ?? [];
      this.drawing.extend((events.length ? events : [event]).map((one) => this.point(one)), event.shiftKey);
    } else if (page.tool.value === "picker" && this.drawing) this.pick(this.point(event));
    this.pointers.set(event.pointerId, now);
  }

  private panTo(id: number, before: { x: number; y: number }, now: { x: number; y: number }): void {
    this.fit = false;
    const other = [...this.pointers].find(([key]) => key !== id)?.[1];
    if (other) {
      const [was, is] = [Math.hypot(before.x - other.x, before.y - other.y), Math.hypot(now.x - other.x, now.y - other.y)];
      this.view = zoomed(this.view, is / Math.max(1, was), (now.x + other.x) / 2, (now.y + other.y) / 2);
    }
    const share = other ? 0.5 : 1;
    this.view = panned(this.view, (now.x - before.x) * share, (now.y - before.y) * share);
  }

  private up(event: PointerEvent): void {
    this.pointers.delete(event.pointerId);
    if (!this.pointers.size) {
      this.panning = false;
      this.cropFrom = null;
      this.drawing?.finish();
    }
  }

  private wheel(event: WheelEvent): void {
    if (event.shiftKey) return; // strength: see keyboard.ts
    event.preventDefault();
    const { x, y } = this.at(event);
    const factor = Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0018));
    if (page.tool.value === "move" && this.drawing && !event.ctrlKey) return this.drawing.scale(factor, placeAt(this.view, x, y));
    this.fit = false;
    this.view = zoomed(this.view, factor, x, y);
  }

  // ------------------------------------------------------------ crop

  private share(place: { x: number; y: number }): { x: number; y: number } {
    const size = currentSource()?.size;
    const { x, y } = placeAt(this.view, place.x, place.y);
    const inside = (value: number) => Math.min(1, Math.max(0, value));
    const mirror = page.input.value === "camera" && page.mirrored.value;
    const across = inside(x / (size?.width || 1));
    return { x: mirror ? 1 - across : across, y: inside(y / (size?.height || 1)) };
  }

  private crop(from: { x: number; y: number }, to: { x: number; y: number }): void {
    const [width, height] = [Math.abs(to.x - from.x), Math.abs(to.y - from.y)];
    if (width > 0.03 && height > 0.03) page.part.value = { x: Math.min(from.x, to.x), y: Math.min(from.y, to.y), width, height };
  }

  // ------------------------------------------------------------ what is seen

  private measure(): void {
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const [width, height] = [Math.round(this.canvas.clientWidth * ratio), Math.round(this.canvas.clientHeight * ratio)];
    if (width && height && (this.canvas.width !== width || this.canvas.height !== height)) [this.canvas.width, this.canvas.height] = [width, height];
  }

  private paint(): void {
    requestAnimationFrame(() => this.paint());
    if (document.hidden || !this.canvas.isConnected) return;
    const source = currentSource();
    const size = page.input.value === "draw" ? page.drawing.value : source?.size;
    if (!size?.width) return void this.wipe("");
    if (this.fit) this.view = fitted(size, this.canvas);
    const state = [page.input.value, page.drawing.value?.version, source?.ticks, ...Object.values(this.view), this.canvas.width, this.canvas.height, this.hand?.x, this.hand?.y, page.tool.value, page.brushSize.value, page.onMask.value, page.colours.value[0], ...Object.values(page.part.value), page.mirrored.value].join();
    if (!this.wipe(state)) return;
    if (page.input.value === "draw") this.paintDrawing();
    else if (source) this.paintSource(source.picture, source.size);
  }

  /** Clear the window; false where it already shows this state. */
  private wipe(state: string): boolean {
    if (state !== "" && state === this.painted) return false;
    this.painted = state;
    this.context.setTransform(1, 0, 0, 1, 0, 0);
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    return true;
  }

  private paintDrawing(): void {
    const drawing = page.drawing.value;
    if (!drawing) return;
    const { context, view } = this;
    context.setTransform(view.scale, 0, 0, view.scale, view.x, view.y);
    context.imageSmoothingEnabled = view.scale < 3;
    context.drawImage(drawing.composite().canvas, 0, 0);
    if (drawing.masked || page.onMask.value) this.paintMask();
    this.paintCursor();
  }

  private paintMask(): void {
    const drawing = page.drawing.value;
    if (!drawing) return;
    if (this.mask?.width !== drawing.width || this.mask.height !== drawing.height) this.mask = new OffscreenCanvas(drawing.width, drawing.height);
    const red = this.mask.getContext("2d") as OffscreenCanvasRenderingContext2D;
    red.globalCompositeOperation = "copy";
    red.drawImage(drawing.mask.canvas, 0, 0);
    red.globalCompositeOperation = "source-over";
    if (drawing.maskShape) drawShape(red, { ...drawing.maskShape, colour: "#ffffff" });
    red.globalCompositeOperation = "source-in";
    red.fillStyle = RED;
    red.fillRect(0, 0, drawing.width, drawing.height);
    this.context.globalAlpha = MASK_ALPHA;
    this.context.drawImage(this.mask, 0, 0);
    this.context.globalAlpha = 1;
  }

  private paintCursor(): void {
    const round = ["brush", "eraser", "line", "rect", "ellipse"].includes(page.tool.value);
    if (!this.hand || !round || this.space) return;
    const { context } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    const radius = Math.max(1.5, (page.brushSize.value * this.view.scale) / 2);
    for (const [colour, more] of [["rgb(255 255 255 / 0.9)", 1], ["rgb(0 0 0 / 0.75)", 0]] as const) {
      context.strokeStyle = colour;
      context.lineWidth = 1.25;
      context.beginPath();
      context.arc(this.hand.x, this.hand.y, radius + more, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  private paintSource(picture: HTMLVideoElement | HTMLCanvasElement, size: { width: number; height: number }): void {
    const { context, view } = this;
    const mirror = page.input.value === "camera" && page.mirrored.value;
    context.setTransform(view.scale, 0, 0, view.scale, view.x, view.y);
    context.save();
    if (mirror) context.transform(-1, 0, 0, 1, size.width, 0);
    context.drawImage(picture, 0, 0, size.width, size.height);
    const { x, y, width, height } = page.part.value;
    if (page.part.value !== WHOLE) {
      context.beginPath();
      context.rect(0, 0, size.width, size.height);
      context.rect(x * size.width, y * size.height, width * size.width, height * size.height);
      context.fillStyle = "rgb(0 0 0 / 0.6)";
      context.fill("evenodd");
      context.strokeStyle = "#ffffff";
      context.lineWidth = 2 / view.scale;
      context.strokeRect(x * size.width, y * size.height, width * size.width, height * size.height);
    }
    context.restore();
  }
}

/** Strength by the wheel, with Shift. */
export function wheelStrength(event: WheelEvent): void {
  if (!event.shiftKey) return;
  event.preventDefault();
  const by = Math.sign(event.deltaY || event.deltaX) * -0.02;
  const next = Math.min(1, Math.max(0.02, Number(page.values.value.strength ?? page.effective.value.strength ?? 1) + by));
  change({ strength: Math.round(next * 100) / 100 });
}
