/** Keys, wheel, drops and pastes of the whole page. */

import { actionOf } from "../core/keys";
import { act, filesIn, stage } from "./actions";
import { wheelStrength } from "./stage";
import * as page from "./state";

function typing(target: EventTarget | null): boolean {
  if (!(target instanceof HTMLElement)) return false;
  if (target instanceof HTMLInputElement) return !["range", "checkbox", "color", "button", "file"].includes(target.type);
  return target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement;
}

function down(event: KeyboardEvent): void {
  if (event.key === "Escape") (document.activeElement as HTMLElement | null)?.blur();
  if (document.querySelector("dialog[open]")) return;
  const button = event.target instanceof HTMLElement && event.target.closest("button, summary, [role=tab]");
  if (event.key === " " && !typing(event.target) && !button) {
    stage.current?.hold(true);
    return event.preventDefault();
  }
  const action = actionOf(event, typing(event.target));
  if (!action || (event.repeat && action.do === "compare")) return;
  event.preventDefault();
  act(action);
}

function up(event: KeyboardEvent): void {
  if (event.key === " ") stage.current?.hold(false);
  if (event.key.toLowerCase() === "c") page.comparing.value = false;
}

export function listen(): void {
  window.addEventListener("keydown", down);
  window.addEventListener("keyup", up);
  window.addEventListener("blur", () => {
    stage.current?.hold(false);
    page.comparing.value = false;
  });
  window.addEventListener("wheel", wheelStrength, { passive: false });
  window.addEventListener("dragover", (event) => event.preventDefault());
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    filesIn(event.dataTransfer?.files);
  });
  window.addEventListener("paste", (event) => {
    if (filesIn(event.clipboardData?.files)) event.preventDefault();
  });
}
