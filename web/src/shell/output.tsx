import { useEffect, useRef } from "preact/hooks";
import { copies, finish, keep, outputToInput, record, saves, trying } from "./actions";
import { Button, Icon } from "./icons";
import { setOutput } from "./live";
import { Blobbed } from "./strip";
import * as page from "./state";

export function OutputPane() {
  const canvas = useRef<HTMLCanvasElement>(null);
  const frame = useRef<HTMLDivElement>(null);
  useEffect(() => setOutput(canvas.current), []);
  return (
    <section class="pane output" aria-label="Output">
      <div class="frame" ref={frame}>
        <canvas ref={canvas} id="output" width={1} height={1} aria-label="The picture" class={page.hasPicture.value ? "" : "none"} />
        {page.comparing.value && <Comparison />}
        {!page.hasPicture.value && <Waiting />}
        <div class="badges" aria-live="off">
          <Badge />
          {page.queue.value && <span class="badge">Place {page.queue.value.pos} in the queue</span>}
          {page.recording.value && <span class="badge rec"><span class="dot" /> Recording</span>}
        </div>
        <Button icon="full" label="Full screen" kind="over" run={() => trying(async () => (document.fullscreenElement ? document.exitFullscreen() : frame.current?.requestFullscreen()))} />
      </div>
      <div class="bar">
        <Button icon="keep" label="Keep this picture" keys="S" run={() => trying(keep)} />
        <HoldToCompare />
        <Button icon="back" label="Use as input" run={() => trying(outputToInput)} />
        <Button icon={page.recording.value ? "stop" : "record"} label={page.recording.value ? "End the recording" : "Record a film"} kind={page.recording.value ? "red" : ""} on={page.recording.value} run={record} />
        <span class="gap" />
        <Menu icon="copy" label="Copy as" entries={[["Settings (infotext)", copies.infotext], ["curl command", copies.curl], ["Python program", copies.python], ["Address of this page", copies.link]]} />
        <Menu icon="save" label="Save" entries={[["Picture", saves.picture], ["Input", saves.input], ["Mask", saves.mask], ["Strokes", saves.strokes]]} />
        <Button icon="finish" label="Paint it again: more steps, twice the size" text={page.finishing.value ? "Finishing" : "Finish"} kind="main" disabled={page.finishing.value || !page.hasPicture.value} run={() => trying(finish)} />
      </div>
    </section>
  );
}

function Badge() {
  if (!page.hasPicture.value) return null;
  if (page.connection.value.state !== "live") return <span class="badge lost"><span class="dot" /> No connection</span>;
  if (page.paused.value) return <span class="badge">Paused</span>;
  if (page.settling.value && page.input.value !== "draw" && page.input.value !== "prompt") return <span class="badge live" id="state"><span class="dot" /> Live</span>;
  if (page.settling.value) return <span class="badge settling" id="state"><span class="dot" /> Settling</span>;
  return <span class="badge done" id="state">{page.refined.value ? "Refined" : "Settled"}</span>;
}

function Waiting() {
  const { state, why } = page.connection.value;
  const live = state === "live" || state === "connecting";
  return <p class="empty">{live ? "The first picture is on its way." : why || "There is no connection."}</p>;
}

function Comparison() {
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const from = document.querySelector<HTMLCanvasElement>("#stage");
    const drawing = page.input.value === "draw" ? page.drawing.value : null;
    const to = canvas.current;
    if (!to || page.pinned.value) return;
    const picture = drawing ? drawing.composite().canvas : from;
    if (!picture) return;
    [to.width, to.height] = [picture.width, picture.height];
    to.getContext("2d")?.drawImage(picture, 0, 0);
  }, []);
  const kept = page.pinned.value;
  return (
    <div class="comparison">
      {kept ? <Blobbed blob={kept.picture} label="The kept picture" /> : <canvas ref={canvas} />}
      <span class="badge">{kept ? "Kept" : "Input"}</span>
    </div>
  );
}

function HoldToCompare() {
  const hold = (on: boolean) => () => (page.comparing.value = on);
  return (
    <button type="button" class="button bare" title="Hold to compare with the input, or with the pinned picture (C)" aria-label="Hold to compare" aria-keyshortcuts="C" aria-pressed={page.comparing.value}
      onPointerDown={hold(true)} onPointerUp={hold(false)} onPointerLeave={hold(false)}
      onKeyDown={(event) => event.key === " " && hold(true)()} onKeyUp={hold(false)} onBlur={hold(false)}>
      <Icon name="compare" />
    </button>
  );
}

interface MenuProps {
  icon: "copy" | "save";
  label: string;
  entries: [string, () => Promise<unknown>][];
}

/** A button that opens a short list; it closes when something is chosen or the focus leaves. */
function Menu({ icon, label, entries }: MenuProps) {
  const box = useRef<HTMLDetailsElement>(null);
  const shut = () => box.current?.removeAttribute("open");
  return (
    <details class="menu" ref={box} onFocusOut={(event) => !box.current?.contains(event.relatedTarget as Node | null) && shut()} onKeyDown={(event) => event.key === "Escape" && shut()}>
      <summary class="button" title={label}>
        <Icon name={icon} />
        <span class="wide">{label}</span>
      </summary>
      <ul>
        {entries.map(([text, run]) => (
          <li key={text}>
            <button type="button" onClick={() => { shut(); trying(run); }}>{text}</button>
          </li>
        ))}
      </ul>
    </details>
  );
}
