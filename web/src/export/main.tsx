import { render } from "preact";
import type { Manifest } from "../model/manifest";
import { App } from "./app";
import { engine, pressed } from "./actions";
import { settled } from "./offline";
import "../shell/style.css";
import "./style.css";
import * as page from "./state";

async function run(): Promise<void> {
  const root = document.getElementById("app");
  if (!root || !(await settled())) return;
  const model = (await (await fetch("./model.json")).json()) as Manifest;
  const { prompt, steps, guidance, strength } = model;
  page.model.value = model;
  page.words.value = { ...page.words.value, prompt, steps, guidance, strength };
  document.title = model.title;
  render(<App />, root);
  window.addEventListener("keydown", pressed);
  engine.start(page.wanted.value);
}

run().catch((error: Error) => {
  document.body.textContent = `The page could not be opened (${error.message}). Put the whole folder on the server.`;
});
