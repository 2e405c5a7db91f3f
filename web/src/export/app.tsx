/** The page: words, paper, picture, settings. */

import { useEffect, useRef } from "preact/hooks";
import { Button } from "../shell/icons";
import { change, engine, output, reseed, save } from "./actions";
import type { EngineKind } from "./messages";
import { Paper, Tools } from "./paper";
import * as page from "./state";

const THEMES = { system: "light", light: "dark", dark: "system" } as const;
const THEME_ICONS = { system: "system", light: "sun", dark: "moon" } as const;

export function App() {
  return (
    <div class="app draw away">
      <Header />
      <div class="words">
        <textarea id="prompt" rows={1} aria-label="Prompt" placeholder="What should it be?" autocomplete="off" spellcheck={false} value={page.words.value.prompt} onInput={(event) => change({ prompt: event.currentTarget.value })} />
      </div>
      <main class="work">
        <Tools />
        <Paper />
        <Picture />
        <Panel />
      </main>
      {page.notice.value && (
        <p class="notice bad" role="alert">
          {page.notice.value}
          <Button icon="close" label="Close" kind="small" run={() => (page.notice.value = "")} />
        </p>
      )}
    </div>
  );
}

function Header() {
  return (
    <header class="top">
      <h1 class="brand">
        few<b>step</b>
        <span class="model">{page.model.value?.title}</span>
      </h1>
      <div class="end">
        <span class={`status ${page.engine.value ? "live" : "connecting"}`} id="engine" role="status" title="All of it is computed in this browser">
          <span class="dot" />
          <span>{engineText()}</span>
        </span>
        <Button icon={THEME_ICONS[page.theme.value]} label={`Colours: ${page.theme.value}. Change`} run={() => (page.theme.value = THEMES[page.theme.value])} />
      </div>
    </header>
  );
}

function engineText(): string {
  const engine = page.engine.value;
  if (!engine) return page.loading.value?.what ?? "";
  if (engine.kind === "webgpu") return "WebGPU";
  return engine.threads === 1 ? "WebAssembly, 1 thread" : `WebAssembly, ${engine.threads} threads`;
}

function Picture() {
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => void (output.canvas = canvas.current), []);
  const [shown, loading, size] = [page.shown.value, page.loading.value, page.model.value?.size_px ?? 1];
  return (
    <section class="pane output" aria-label="Picture">
      <div class="frame">
        <canvas ref={canvas} id="output" width={size} height={size} role="img" aria-label={shown ? `The picture: ${shown.words.prompt}` : "The picture"} class={shown ? "" : "none"} />
        {loading && (
          <div class="empty">
            <p>{loading.what}</p>
            <progress max={1} value={loading.share} aria-label={loading.what} />
          </div>
        )}
        {shown && !loading && (
          <div class="badges">
            <span id="state" class={`badge ${page.busy.value ? "settling" : "done"}`}>{page.busy.value ? <><span class="dot" /> Painting</> : "Done"}</span>
          </div>
        )}
      </div>
      <div class="bar">
        <span class="tip" id="time">{shown ? `${shown.ms.toFixed(0)} ms, ${shown.steps} ${shown.steps === 1 ? "step" : "steps"}` : ""}</span>
        <span class="gap" />
        <Button icon="dice" label="Another seed" keys="R" run={reseed} />
        <Button icon="save" label="Save the picture with its settings" keys="S" text="Save" kind="main" disabled={!shown} run={() => void save()} />
      </div>
    </section>
  );
}

interface SliderProps {
  name: "steps" | "strength" | "guidance";
  label: string;
  help: string;
  low: number;
  high: number;
  step: number;
}

const SLIDERS: SliderProps[] = [
  { name: "steps", label: "Steps", help: "How often the model looks (1 to 8)", low: 1, high: 8, step: 1 },
  { name: "strength", label: "Strength", help: "How far the picture may leave the drawing", low: 0.02, high: 1, step: 0.01 },
];
const GUIDANCE: SliderProps = { name: "guidance", label: "Guidance", help: "1 is off; above it every step costs twice", low: 1, high: 4, step: 0.1 };

function Panel() {
  const { seed, negative, guidance } = page.words.value;
  return (
    <aside class="panel" aria-label="Settings">
      <section>
        {SLIDERS.map((one) => <Slider key={one.name} {...one} />)}
        <div class="control seed" title="The same words and seed give the same picture">
          <label for="seed">Seed</label>
          <div class="row">
            <input id="seed" type="number" min={0} max={2 ** 32 - 1} value={seed} onChange={(event) => change({ seed: Math.min(2 ** 32 - 1, Math.max(0, Math.floor(Number(event.currentTarget.value)))) })} />
            <Button icon="dice" label="Another seed, by dice" run={reseed} />
          </div>
        </div>
      </section>
      <details class="more">
        <summary>More settings</summary>
        <Slider {...GUIDANCE} />
        <label class="control">
          <span>Negative prompt</span>
          <textarea rows={2} spellcheck={false} value={negative} disabled={guidance === 1} placeholder="With a guidance above 1" onInput={(event) => change({ negative: event.currentTarget.value })} />
        </label>
        <label class="control">
          <span>Engine</span>
          <select id="engines" value={page.wanted.value} onChange={(event) => choose(event.currentTarget.value as EngineKind)}>
            <option value="wasm">WebAssembly (processor)</option>
            <option value="webgpu" disabled={!("gpu" in navigator)}>WebGPU (graphics card)</option>
          </select>
        </label>
        <p class="quiet">Nothing leaves this browser. <a href="./licences.txt">Licences</a></p>
      </details>
    </aside>
  );
}

function choose(kind: EngineKind): void {
  page.wanted.value = kind;
  engine.start(kind);
}

function Slider({ name, label, help, low, high, step }: SliderProps) {
  const value = page.words.value[name];
  const share = (value - low) / (high - low);
  return (
    <div class="control" title={help}>
      <label for={name}>{label}</label>
      <output for={name}>{value}</output>
      <input id={name} type="range" min={low} max={high} step={step} value={value} style={{ "--share": `${100 * share}%` }} onInput={(event) => change({ [name]: Number(event.currentTarget.value) })} />
    </div>
  );
}
