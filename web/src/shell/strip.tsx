import { useEffect, useRef, useState } from "preact/hooks";
import type { Kept } from "../core/shelf";
import { copy, download, forget, pictureIn, trying, useSettings } from "./actions";
import { Button } from "./icons";
import * as page from "./state";

/** A picture that is only in memory. */
export function Blobbed({ blob, label }: { blob: Blob; label: string }) {
  const [address, set] = useState("");
  useEffect(() => {
    const made = URL.createObjectURL(blob);
    set(made);
    return () => URL.revokeObjectURL(made);
  }, [blob]);
  return address ? <img src={address} alt={label} draggable={false} /> : null;
}

export function Strip() {
  const kept = page.kept.value;
  return (
    <section class="strip" aria-label="Kept pictures">
      {kept.length === 0 && <p class="quiet">Pictures that you keep (<kbd>S</kbd>) line up here.</p>}
      <ul>
        {kept.map((item) => (
          <li key={item.id}>
            <button type="button" class={page.pinned.value === item ? "pinned" : ""} title={item.infotext} aria-label={`Kept picture: ${String(item.values.prompt ?? "")}`} onClick={() => (page.opened.value = item)}>
              <Blobbed blob={item.picture} label="" />
              {item.note && <span class="badge">HQ</span>}
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}

/** A kept picture, large, with what can be done with it. */
export function Opened() {
  const item = page.opened.value;
  const box = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    if (item && !box.current?.open) box.current?.showModal();
    if (!item && box.current?.open) box.current.close();
  }, [item]);
  return (
    <dialog ref={box} class="opened" aria-label="Kept picture" onClose={() => (page.opened.value = null)} onClick={(event) => event.target === box.current && box.current?.close()}>
      {item && <Inside item={item} />}
    </dialog>
  );
}

function Inside({ item }: { item: Kept }) {
  const pinned = page.pinned.value === item;
  const close = (run: () => void) => () => { run(); page.opened.value = null; };
  return (
    <div class="inside">
      <Blobbed blob={item.picture} label={String(item.values.prompt ?? "")} />
      <pre>{item.infotext}</pre>
      <div class="row">
        <Button icon="save" label="Save" text="Save" kind="main" run={() => download(item.picture, `fewstep-${item.id}.png`)} />
        <Button icon="back" label="Use as input" text="To input" run={close(() => trying(() => pictureIn(item.picture, "Kept")))} />
        <Button icon="play" label="Take its settings over" text="Settings" run={() => useSettings(item)} />
        <Button icon="compare" label={pinned ? "No longer compare with it" : "Pin: hold C to compare with it"} text={pinned ? "Unpin" : "Pin"} on={pinned} run={close(() => (page.pinned.value = pinned ? null : item))} />
        <Button icon="copy" label="Copy its settings" text="Copy" run={() => trying(() => copy(item.infotext, "settings"))} />
        <span class="gap" />
        <Button icon="clear" label="Delete" run={() => forget(item)} />
        <Button icon="close" label="Close" run={close(() => undefined)} />
      </div>
    </div>
  );
}
