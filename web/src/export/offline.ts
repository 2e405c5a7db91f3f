/** Brings the service worker into play before anything large is loaded, so that all of it goes through its hands. */

const PATIENCE_MS = 4000;
const TRIED = "fewstep.isolated";

/**
 * True where the page may go on, false where it is being loaded once more: only a page that came through the service
 * worker has the headers that threads need. Without a service worker (private windows, plain http) it goes on alone.
 */
export async function settled(): Promise<boolean> {
  if (!navigator.serviceWorker) return true;
  try {
    await navigator.serviceWorker.register("./sw.js");
  } catch {
    return true;
  }
  await controlled();
  if (crossOriginIsolated || !navigator.serviceWorker.controller || sessionStorage.getItem(TRIED)) return true;
  sessionStorage.setItem(TRIED, "1");
  location.reload();
  return false;
}

function controlled(): Promise<void> {
  if (navigator.serviceWorker.controller) return Promise.resolve();
  return new Promise((resolve) => {
    navigator.serviceWorker.addEventListener("controllerchange", () => resolve(), { once: true });
    setTimeout(resolve, PATIENCE_MS);
  });
}
