import { useEffect, useRef, useState } from "preact/hooks";
import { login } from "../core/server";
import { Header, Prompt } from "./header";
import { Button } from "./icons";
import { InputPane, Tools } from "./input";
import { begin, change, reseed } from "./live";
import { OutputPane } from "./output";
import { Panel } from "./panel";
import { Share } from "./share";
import { Opened, Strip } from "./strip";
import * as page from "./state";

export function App() {
  return (
    <div class={`app ${page.input.value}`}>
      <Header />
      <Prompt change={words} />
      <main class="work">
        {page.input.value === "draw" && <Tools />}
        <InputPane />
        <OutputPane />
        <Panel />
      </main>
      <footer class="foot">
        <Figures />
        <Strip />
      </footer>
      {page.hint.value && <Hint />}
      {page.notice.value && <p class={`notice ${page.notice.value.bad ? "bad" : ""}`} role={page.notice.value.bad ? "alert" : "status"}>{page.notice.value.text}</p>}
      <Opened />
      <Share />
      {page.connection.value.state === "locked" && <Login />}
    </div>
  );
}

function words(prompt: string): void {
  change({ prompt });
  reseed();
}

/** What the machine does, in figures that the page or the server measured. */
function Figures() {
  const { fpsIn, fpsOut, delayMs, pictureMs } = page.figures.value;
  const stats = page.stats.value;
  const ms = (value: number | null | undefined) => (value === null || value === undefined ? "–" : `${value.toFixed(0)} ms`);
  const all: [string, string, string][] = [
    ["In", `${fpsIn.toFixed(0)} fps`, "Frames sent in a second"],
    ["Out", `${fpsOut.toFixed(0)} fps`, "Pictures shown in a second"],
    ["Hand to eye", ms(delayMs), "From a change here to its picture on the screen: the median of the last ones"],
    ["Painting", ms(pictureMs), "In the making, as the server says"],
    ["p95", ms(stats?.p95_ms), "All but one of twenty pictures took at most this, queue and making"],
    ["Dropped", String(stats?.dropped ?? 0), "Frames that newer ones replaced in the last second: nothing is ever out of date"],
    ["Same", String(stats?.unchanged ?? 0), "Frames of the last second that were the same as the one before"],
  ];
  return (
    <dl class="figures" aria-label="Figures">
      {all.map(([name, value, help]) => (
        <div key={name} title={help}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

const KEYS: [string, string][] = [
  ["B E G I", "brush, eraser, fill, pick"],
  ["[ ] X", "brush size, swap colours"],
  ["Ctrl Z Y", "undo, redo"],
  ["Space", "hold to pan; wheel zooms"],
  ["1 – 8", "steps"],
  ["⇧ wheel", "strength"],
  ["R L", "new seed, lock it"],
  ["S C", "keep, compare"],
  ["P", "pause"],
];

function Hint() {
  return (
    <section class="hint" aria-label="Hints">
      <Button icon="close" label="Close" kind="small over" run={() => (page.hint.value = false)} />
      <div>
        <h2>Draw here, see there</h2>
        <p>Change the words, draw a rough shape, or drop a picture. Less <b>strength</b> keeps more of your drawing; on blank paper the words decide alone.</p>
      </div>
      <dl>
        {KEYS.map(([keys, what]) => (
          <div key={keys}>
            <dt>{keys.split(" ").map((key) => <kbd key={key}>{key}</kbd>)}</dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
    </section>
  );
}

/** The key, where the server wants one. */
function Login() {
  const box = useRef<HTMLDialogElement>(null);
  const [why, say] = useState("");
  useEffect(() => box.current?.showModal(), []);
  const send = (event: SubmitEvent) => {
    event.preventDefault();
    const key = new FormData(event.currentTarget as HTMLFormElement).get("key");
    login(String(key)).then(begin, (error: Error) => say(error.message));
  };
  return (
    <dialog ref={box} class="login" aria-labelledby="login" onCancel={(event) => event.preventDefault()}>
      <form onSubmit={send}>
        <h2 id="login">This server wants its key</h2>
        <p>It was printed when the server was started.</p>
        <input type="text" name="username" value="fewstep" autocomplete="username" hidden />
        <input type="password" name="key" aria-label="Key" autocomplete="current-password" required autofocus />
        {why && <p class="bad" role="alert">{why}</p>}
        <button type="submit" class="button main">Open</button>
      </form>
    </dialog>
  );
}
