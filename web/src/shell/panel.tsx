import { useState } from "preact/hooks";
import { LAYERS_LIMIT, type Layer } from "../core/canvas/drawing";
import { type Field, read } from "../core/form";
import type { Policy } from "../core/policy";
import { act } from "./actions";
import { Button } from "./icons";
import { change, reseed } from "./live";
import * as page from "./state";

export function Panel() {
  const [main, more] = [page.fields.value.filter((field) => field.main), page.fields.value.filter((field) => !field.main)];
  return (
    <aside class="panel" aria-label="Settings">
      <section>{main.map((field) => <Control key={field.name} field={field} />)}</section>
      <Loras />
      {page.input.value === "draw" && <Layers />}
      <Update />
      <details class="more">
        <summary>More settings</summary>
        {more.map((field) => <Control key={field.name} field={field} />)}
      </details>
    </aside>
  );
}

function Control({ field }: { field: Field }) {
  const value = page.values.value[field.name];
  const set = (next: unknown) => change({ [field.name]: next });
  if (field.kind === "number") return <NumberField field={field} value={value as number | null} set={set} />;
  if (field.kind === "seed") return <Seed field={field} value={value as number | null} set={set} />;
  if (field.kind === "switch") {
    return (
      <label class="control across" title={field.help}>
        <span>{field.label}</span>
        <input type="checkbox" role="switch" checked={value === true} onChange={(event) => set(event.currentTarget.checked)} />
      </label>
    );
  }
  return (
    <label class="control" title={field.help}>
      <span>{field.label}</span>
      <Words field={field} value={value} set={set} />
    </label>
  );
}

function Words({ field, value, set }: { field: Field; value: unknown; set: (next: unknown) => void }) {
  const text = value === null || value === undefined ? "" : String(value);
  if (field.kind === "choice") {
    return (
      <select value={text} onChange={(event) => set(event.currentTarget.value || null)}>
        <option value="">{own(field.name)}</option>
        {field.choices.map((name) => <option key={name} value={name}>{name}</option>)}
      </select>
    );
  }
  if (field.kind === "words") return <textarea rows={2} value={text} spellcheck={false} onInput={(event) => set(event.currentTarget.value)} />;
  return <input type="text" value={text} onChange={(event) => set(event.currentTarget.value || null)} />;
}

function own(name: string): string {
  const value = page.effective.value[name];
  return typeof value === "string" ? `The model's own: ${value}` : "The model's own";
}

interface NumberProps {
  field: Field;
  value: number | null;
  set: (next: number | null) => void;
}

/** A slider with its number; an empty number is the model's own. */
function NumberField({ field, value, set }: NumberProps) {
  const [typed, type] = useState<string | null>(null);
  const done = () => {
    if (typed !== null) set(typed.trim() === "" ? null : (read(field, typed) ?? value));
    type(null);
  };
  const own = page.effective.value[field.name];
  const shown = value ?? (typeof own === "number" ? own : field.low);
  const share = Math.min(1, Math.max(0, (shown - field.low) / (field.high - field.low || 1)));
  return (
    <div class="control" title={field.help}>
      <label for={`field-${field.name}`}>{field.label}</label>
      <input class="number" inputMode="decimal" aria-label={`${field.label}, as a number`} placeholder={typeof own === "number" ? String(own) : "own"} value={typed ?? (value === null ? "" : String(value))}
        onInput={(event) => type(event.currentTarget.value)} onBlur={done} onKeyDown={(event) => event.key === "Enter" && event.currentTarget.blur()} />
      <input id={`field-${field.name}`} type="range" class={value === null ? "own" : ""} min={field.low} max={field.high} step={field.step} value={shown} style={{ "--share": `${100 * share}%` }} onInput={(event) => set(Number(event.currentTarget.value))} />
    </div>
  );
}

function Seed({ field, value, set }: NumberProps) {
  return (
    <div class="control seed" title={field.help}>
      <label for="field-seed">{field.label}</label>
      <div class="row">
        <input id="field-seed" type="number" min={field.least} max={field.most} value={value ?? ""} onChange={(event) => set(read(field, event.currentTarget.value))} />
        <Button icon="dice" label="Another seed" keys="R" run={() => reseed(true)} />
        <Button icon={page.locked.value ? "lock" : "unlock"} label={page.locked.value ? "Locked: the seed stays" : "Open: another seed with every stroke and prompt"} keys="L" on={page.locked.value} run={() => act({ do: "lock" })} />
      </div>
    </div>
  );
}

type Chosen = { name: string; weight: number };

function Loras() {
  const chosen = (page.values.value.loras as Chosen[] | undefined) ?? [];
  const free = page.loras.value.filter((name) => !chosen.some((one) => one.name === name));
  if (!page.loras.value.length && !chosen.length) return null;
  const set = (loras: Chosen[]) => change({ loras });
  return (
    <section aria-label="LoRAs">
      <h2>LoRAs</h2>
      {chosen.map(({ name, weight }) => (
        <div class="chip" key={name}>
          <span title={name}>{name}</span>
          <input type="range" min={-1} max={2} step={0.05} value={weight} aria-label={`Weight of ${name}`} onInput={(event) => set(chosen.map((one) => (one.name === name ? { name, weight: Number(event.currentTarget.value) } : one)))} />
          <output>{weight.toFixed(2)}</output>
          <Button icon="close" label={`Without ${name}`} kind="small" run={() => set(chosen.filter((one) => one.name !== name))} />
        </div>
      ))}
      {free.length > 0 && (
        <select aria-label="Add a LoRA" value="" onChange={(event) => { set([...chosen, { name: event.currentTarget.value, weight: 1 }]); event.currentTarget.value = ""; }}>
          <option value="">Add a LoRA</option>
          {free.map((name) => <option key={name}>{name}</option>)}
        </select>
      )}
    </section>
  );
}

const POLICIES: [Policy, string, string][] = [
  ["auto", "Auto", "At every change; when a picture takes longer than 1.5 s, on pause"],
  ["change", "Change", "At every change"],
  ["stroke", "Stroke", "At the end of a stroke"],
  ["pause", "Pause", "When the hand rests"],
];

function Update() {
  return (
    <section>
      <div class="control">
        <span id="update">Repaint at</span>
        <div class="segments" role="radiogroup" aria-labelledby="update">
          {POLICIES.map(([name, text, help]) => (
            <button key={name} type="button" role="radio" aria-checked={page.policy.value === name} title={help} onClick={() => (page.policy.value = name)}>{text}</button>
          ))}
        </div>
      </div>
    </section>
  );
}

function Layers() {
  const drawing = page.drawing.value;
  if (!drawing || page.drawn.value < 0) return null;
  return (
    <section aria-label="Layers" class="layers">
      <h2>
        Layers
        <span class="gap" />
        <Button icon="up" label="Layer up" kind="small" run={() => drawing.shift(drawing.active, 1)} />
        <Button icon="down" label="Layer down" kind="small" run={() => drawing.shift(drawing.active, -1)} />
        <Button icon="mirror" label="Mirror the layer" kind="small" run={() => drawing.mirror()} />
        <Button icon="clear" label="Remove the layer" kind="small" disabled={drawing.layers.length < 2} run={() => drawing.remove(drawing.active)} />
        <Button icon="plus" label="New layer" kind="small" disabled={drawing.layers.length >= LAYERS_LIMIT} run={() => drawing.add()} />
      </h2>
      {drawing.masked && (
        <div class={`layer mask ${page.onMask.value ? "chosen" : ""}`}>
          <button type="button" class="name" onClick={() => (page.onMask.value = true)}>Mask</button>
          <Button icon="clear" label="Remove the mask" kind="small" run={() => drawing.clear(true)} />
        </div>
      )}
      {[...drawing.layers].reverse().map((layer) => <LayerRow key={layer.id} layer={layer} />)}
    </section>
  );
}

function LayerRow({ layer }: { layer: Layer }) {
  const drawing = page.drawing.value;
  if (!drawing || page.drawn.value < 0) return null; // layers change in place: `drawn` says when
  const chosen = drawing.active === layer && !page.onMask.value;
  return (
    <div class={`layer ${chosen ? "chosen" : ""}`}>
      <Button icon={layer.visible ? "eye" : "shut"} label={layer.visible ? `Hide ${layer.name}` : `Show ${layer.name}`} kind="small" run={() => drawing.look(layer, { visible: !layer.visible })} />
      <button type="button" class="name" aria-current={chosen} onClick={() => { page.onMask.value = false; drawing.choose(layer); }}>{layer.name}</button>
      <input type="range" min={0} max={1} step={0.01} value={layer.opacity} aria-label={`Opacity of ${layer.name}`} title="Opacity" onInput={(event) => drawing.look(layer, { opacity: Number(event.currentTarget.value) })} />
    </div>
  );
}
