/** The paper to draw on, its tools and colours. */

import { effect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { Point } from "../core/canvas/strokes";
import { Button } from "../shell/icons";
import { engine } from "./actions";
import * as page from "./state";

const SWATCHES = ["#1d1d1f", "#ffffff", "#d62828", "#f77f00", "#fcbf49", "#2a9d4a", "#1d6fd6", "#7b3fb5", "#8d5a34", "#f4a6b8"];
const MOUSE_PRESSURE = 0.5;

export function Paper() {
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => (canvas.current ? draws(canvas.current) : undefined), []);
  return (
    <section class="pane input draw" aria-label="Drawing">
      <div class="frame">
        <canvas ref={canvas} id="stage" tabIndex={0} width={page.PAPER_PX} height={page.PAPER_PX} role="img" aria-label="Drawing: paint with a mouse, a pen or a finger" />
        {page.drawn.value === 0 && <p class="empty">Draw here, or let the words decide alone.</p>}
      </div>
      <div class="bar">
        <div class="swatches" role="group" aria-label="Colours">
          {SWATCHES.map((colour) => (
            <button key={colour} type="button" aria-label={`Colour ${colour}`} aria-pressed={colour === page.colour.value} style={{ background: colour }} onClick={() => (page.colour.value = colour)} />
          ))}
        </div>
        <input type="color" class="own" aria-label="Another colour" title="Another colour" value={page.colour.value} onInput={(event) => (page.colour.value = event.currentTarget.value)} />
        <label class="size" title="Brush size ([ and ])">
          <input type="range" min={2} max={200} value={page.brushSize.value} aria-label="Brush size" onInput={(event) => (page.brushSize.value = Number(event.currentTarget.value))} />
        </label>
      </div>
    </section>
  );
}

export function Tools() {
  const { drawing } = page;
  const counted = page.drawn.value >= 0; // undo changes in place: `drawn` says when
  return (
    <nav class="tools" aria-label="Tools">
      <Button icon="brush" label="Brush" keys="B" on={page.tool.value === "brush"} run={() => (page.tool.value = "brush")} />
      <Button icon="eraser" label="Eraser" keys="E" on={page.tool.value === "eraser"} run={() => (page.tool.value = "eraser")} />
      <hr />
      <Button icon="undo" label="Undo" keys="Control+Z" disabled={!(counted && drawing.undo.depth)} run={() => drawing.back()} />
      <Button icon="redo" label="Redo" keys="Control+Y" disabled={!(counted && drawing.undo.ahead)} run={() => drawing.forth()} />
      <Button icon="clear" label="Clear the paper" run={() => drawing.clearAll()} />
    </nav>
  );
}

/** The hand's movements become strokes, and every change is shown and painted. Returns what ends it. */
function draws(canvas: HTMLCanvasElement): () => void {
  const { drawing } = page;
  const context = canvas.getContext("2d");
  const point = (event: PointerEvent): Point => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    const side = Math.min(width, height);
    const place = (at: number, start: number, whole: number) => ((at - start - (whole - side) / 2) / side) * page.PAPER_PX;
    const pressure = event.pointerType === "pen" ? event.pressure : MOUSE_PRESSURE;
    return { x: place(event.clientX, left, width), y: place(event.clientY, top, height), pressure };
  };
  canvas.onpointerdown = (event) => {
    if (event.button !== 0 || drawing.drawing) return;
    canvas.setPointerCapture(event.pointerId);
    drawing.begin({ tool: page.tool.value, mask: false, colour: page.colour.value, size: page.brushSize.value, even: false, filled: false }, point(event));
  };
  canvas.onpointermove = (event) => {
    if (drawing.drawing) drawing.extend((event.getCoalescedEvents?.() ?? [event]).map(point));
  };
  canvas.onpointerup = canvas.onpointercancel = () => drawing.finish();
  return effect(() => {
    if (page.drawn.value < 0) return;
    context?.drawImage(drawing.composite().canvas, 0, 0);
    engine.ask();
  });
}
