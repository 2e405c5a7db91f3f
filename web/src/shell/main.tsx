import { render } from "preact";
import { App } from "./app";
import { listen } from "./keyboard";
import { run } from "./live";
import "./style.css";

const root = document.getElementById("app");
if (root) {
  run();
  render(<App />, root);
  listen();
  document.getElementById("prompt")?.focus();
}
