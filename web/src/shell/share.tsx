/** The page's address for another device, with its QR code. */

import { signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { type Shared, share } from "../core/server";

const shared = signal<Shared | null>(null);

/** Ask the server for an address, and show it. */
export async function openShare(): Promise<void> {
  shared.value = await share();
}

export function Share() {
  const box = useRef<HTMLDialogElement>(null);
  useEffect(() => box.current?.showModal(), [shared.value]);
  if (!shared.value) return null;
  const { address, qr, seconds } = shared.value;
  return (
    <dialog ref={box} class="login share" aria-labelledby="share" onClose={() => (shared.value = null)}>
      <form method="dialog">
        <h2 id="share">On another device</h2>
        <img src={`data:image/svg+xml,${encodeURIComponent(qr)}`} alt="QR code of the address" />
        <input type="text" readOnly aria-label="Address" value={address} onFocus={(event) => event.currentTarget.select()} />
        <p>
          {seconds !== null && `It lets one device in, within ${Math.round(seconds / 60)} minutes. `}
          {address.startsWith("https:") ? "The browser warns once of this machine's own certificate." : "Cameras and screens need a server that was started with --https."}
        </p>
        <button type="submit" class="button main">Close</button>
      </form>
    </dialog>
  );
}
