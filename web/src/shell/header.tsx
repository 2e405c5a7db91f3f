import { trying } from "./actions";
import { Button, Icon, type IconName } from "./icons";
import { choose, connection as line, setPaused } from "./live";
import { openShare } from "./share";
import * as page from "./state";

const INPUTS: [page.Input, IconName, string][] = [
  ["draw", "draw", "Draw"],
  ["camera", "camera", "Camera"],
  ["screen", "screen", "Screen"],
  ["video", "video", "Video"],
  ["pattern", "pattern", "Pattern"],
  ["prompt", "prompt", "Words"],
];

const TIPS: Record<page.Input, string> = {
  draw: "Draw, or drop a picture",
  camera: "Your camera",
  screen: "A screen, a window or a tab",
  video: "A film from a file",
  pattern: "Moving shapes, where there is no camera",
  prompt: "No picture: the words alone",
};

const THEMES = { system: "light", light: "dark", dark: "system" } as const;
const THEME_ICONS = { system: "system", light: "sun", dark: "moon" } as const;

export function Header() {
  return (
    <header class="top">
      <h1 class="brand">
        few<b>step</b>
        <span class="model" title="The model of this server">{page.model}</span>
      </h1>
      <nav class="inputs" role="tablist" aria-label="Input">
        {INPUTS.map(([name, icon, text]) => (
          <button key={name} type="button" role="tab" aria-selected={page.input.value === name} title={TIPS[name]} onClick={() => pick(name)}>
            <Icon name={icon} />
            <span>{text}</span>
          </button>
        ))}
      </nav>
      <div class="end">
        <Status />
        <Button icon={page.paused.value ? "play" : "pause"} label={page.paused.value ? "Go on" : "Pause"} keys="P" on={page.paused.value} run={() => setPaused(!page.paused.value)} />
        <Button icon={THEME_ICONS[page.theme.value]} label={`Colours: ${page.theme.value}. Change`} run={() => (page.theme.value = THEMES[page.theme.value])} />
        <Button icon="share" label="Open on another device" run={() => trying(openShare)} />
        <Button icon="help" label="Keys and hints" keys="?" on={page.hint.value} run={() => (page.hint.value = !page.hint.value)} />
      </div>
    </header>
  );
}

function pick(name: page.Input): void {
  if (name === "video") return chooseFile("video/*", (file) => trying(() => choose("video", file)));
  trying(() => choose(name));
}

/** Ask for a file; nothing happens when none is chosen. */
export function chooseFile(accept: string, run: (file: File) => void): void {
  const field = document.createElement("input");
  field.type = "file";
  field.accept = accept;
  field.onchange = () => field.files?.[0] && run(field.files[0]);
  field.click();
}

const WORDS = { off: "Off", connecting: "Connecting", live: "Live", waiting: "Reconnecting", locked: "Locked", refused: "Elsewhere" };

function Status() {
  const { state, why } = page.connection.value;
  const { fpsOut, delayMs } = page.figures.value;
  const live = state === "live";
  const words = live && page.paused.value ? "Paused" : WORDS[state];
  return (
    <button type="button" class={`status ${live && page.paused.value ? "held" : state}`} title={why || "The connection. Press to connect anew."} onClick={() => line.start()}>
      <span class="dot" />
      <span role="status">{words}</span>
      {live && <span class="wide">{fpsOut.toFixed(0)} fps</span>}
      {live && delayMs !== null && <span class="wide">{delayMs.toFixed(0)} ms</span>}
    </button>
  );
}

export function Prompt({ change }: { change: (text: string) => void }) {
  return (
    <div class="words">
      <textarea
        id="prompt"
        rows={1}
        aria-label="Prompt"
        placeholder="What should it be?"
        autocomplete="off"
        spellcheck={false}
        value={String(page.values.value.prompt ?? "")}
        onInput={(event) => change(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Enter" && !event.shiftKey) {
            event.preventDefault();
            event.currentTarget.blur();
          }
        }}
      />
    </div>
  );
}
