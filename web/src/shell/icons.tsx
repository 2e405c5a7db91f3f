/** Line drawings of 20 x 20, in the colour of the text. */

const PATHS = {
  brush: "M12.5 3.5l4 4-7 7-4-4zM5.5 10.5c-2 .5-2 3.5-3 5.5 2.5.5 5.5 0 6.5-2",
  eraser: "M8.5 16.5h8M3.5 11.5l7.5-7.5 5.5 5.5-7 7h-3zM7 8l5.5 5.5",
  picker: "M11 6l3 3M12 3.5a2.1 2.1 0 0 1 3 0l1.5 1.5a2.1 2.1 0 0 1 0 3L14 9.5 10.5 6zM11 7.5l-6.5 6.5-1 2.5 2.5-1 6.5-6.5",
  fill: "M8.5 3l6.5 6.5-5.5 5.5a1.5 1.5 0 0 1-2 0L3 10.5a1.5 1.5 0 0 1 0-2L8.5 3zM2.7 10h11.6M17 12c1 1.5 1.3 2.2 1.3 2.8a1.3 1.3 0 0 1-2.6 0c0-.6.3-1.3 1.3-2.8z",
  line: "M4 16L16 4",
  rect: "M3.5 5h13v10h-13z",
  ellipse: "M10 4.5c4 0 7 2.5 7 5.5s-3 5.5-7 5.5-7-2.5-7-5.5 3-5.5 7-5.5z",
  move: "M10 2.5v15M2.5 10h15M8 4.5l2-2 2 2M8 15.5l2 2 2-2M4.5 8l-2 2 2 2M15.5 8l2 2-2 2",
  mask: "M3.5 3.5h13v13h-13zM10 6.5a3.5 3.5 0 1 1 0 7 3.5 3.5 0 0 1 0-7z",
  undo: "M4 8h8a4.5 4.5 0 0 1 0 9H8M7.5 4.5L4 8l3.5 3.5",
  redo: "M16 8H8a4.5 4.5 0 0 0 0 9h4M12.5 4.5L16 8l-3.5 3.5",
  clear: "M4 6h12M8 6V4h4v2M5.5 6l.8 10.5h7.4L14.5 6M8.5 9v5M11.5 9v5",
  swap: "M4 7h10l-2.5-2.5M16 13H6l2.5 2.5",
  draw: "M3 17c3-1 1-4 3.5-5.5S11 14 13 12s1-5 4-8",
  camera: "M2.5 6h9.5v8.5H2.5zM12 9l5.5-3v8.5L12 11.5",
  screen: "M2.5 4h15v10h-15zM7 17h6M10 14v3",
  video: "M3 4h14v12H3zM8.5 7.5v5l4-2.5z",
  pattern: "M7 4.5a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7zM11 9.5h6v6.5h-6z",
  prompt: "M4 5h12M4 10h8M4 15h10",
  sun: "M10 6.5a3.5 3.5 0 1 1 0 7 3.5 3.5 0 0 1 0-7zM10 2v1.5M10 16.5V18M2 10h1.5M16.5 10H18M4.3 4.3l1.1 1.1M14.6 14.6l1.1 1.1M15.7 4.3l-1.1 1.1M5.4 14.6l-1.1 1.1",
  moon: "M16 11.5A6.5 6.5 0 0 1 8.5 4a6.5 6.5 0 1 0 7.5 7.5z",
  system: "M10 3a7 7 0 1 0 0 14zM10 3a7 7 0 0 1 0 14",
  help: "M10 2.5a7.5 7.5 0 1 1 0 15 7.5 7.5 0 0 1 0-15zM7.8 8a2.2 2.2 0 1 1 3.3 1.9c-.8.5-1.1.9-1.1 1.7M10 14v.2",
  play: "M6 4l10 6-10 6z",
  pause: "M6.5 4v12M13.5 4v12",
  dice: "M4 4h12v12H4zM7.5 7.5v.01M12.5 7.5v.01M10 10v.01M7.5 12.5v.01M12.5 12.5v.01",
  lock: "M5 9h10v7.5H5zM7 9V6.5a3 3 0 0 1 6 0V9",
  unlock: "M5 9h10v7.5H5zM7 9V6.5a3 3 0 0 1 5.7-1.3",
  keep: "M5 3h10v14l-5-3.5L5 17z",
  compare: "M10 3v14M3 5h14v10H3zM3 12l3-3 4 4",
  back: "M16 10H4M9 5l-5 5 5 5",
  record: "M10 5a5 5 0 1 1 0 10 5 5 0 0 1 0-10z",
  stop: "M5.5 5.5h9v9h-9z",
  copy: "M7 7h9.5v9.5H7zM13 7V3.5H3.5V13H7",
  save: "M10 3v9M6 8.5l4 4 4-4M3.5 16.5h13",
  full: "M3.5 8V3.5H8M12 3.5h4.5V8M16.5 12v4.5H12M8 16.5H3.5V12",
  finish: "M10 2.5l1.8 4.7 4.7 1.8-4.7 1.8L10 15.5l-1.8-4.7L3.5 9l4.7-1.8zM16 14v3.5M14.25 15.75h3.5",
  eye: "M2 10c2-3.5 4.7-5 8-5s6 1.5 8 5c-2 3.5-4.7 5-8 5s-6-1.5-8-5zM10 7.8a2.2 2.2 0 1 1 0 4.4 2.2 2.2 0 0 1 0-4.4z",
  shut: "M3 8.5c2 2.5 4.3 3.7 7 3.7s5-1.2 7-3.7M5 11l-1.5 2M10 12.2V15M15 11l1.5 2",
  share: "M10 12.5V3M6.5 6L10 2.5 13.5 6M6 9H4v8h12V9h-2",
  plus: "M10 4v12M4 10h12",
  close: "M5 5l10 10M15 5L5 15",
  up: "M5 12l5-5 5 5",
  down: "M5 8l5 5 5-5",
  mirror: "M10 3v14M7.5 6L3 14h4.5zM12.5 6l4.5 8h-4.5z",
  picture: "M3 4h14v12H3zM3 13l4-4 4 4 2-2 4 4M12.5 7.5v.01",
  fit: "M4 7V4h3M13 4h3v3M16 13v3h-3M7 16H4v-3M7.5 7.5h5v5h-5z",
};

export type IconName = keyof typeof PATHS;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg class="icon" viewBox="0 0 20 20" width="20" height="20" aria-hidden="true" fill="none" stroke="currentColor" stroke-width="1.5" stroke-linecap="round" stroke-linejoin="round">
      <path d={PATHS[name]} />
    </svg>
  );
}

interface ButtonProps {
  icon?: IconName;
  label: string;
  /** Shown beside the icon; without it the label is for readers of the screen and as a tip. */
  text?: string;
  keys?: string;
  on?: boolean;
  kind?: string;
  disabled?: boolean;
  run: () => void;
}

/** A button with an icon, a tip that names its key, and a state where it has one. */
export function Button({ icon, label, text, keys, on, kind = "", disabled, run }: ButtonProps) {
  const tip = keys ? `${label} (${keys})` : label;
  return (
    <button type="button" class={`button ${kind} ${text ? "" : "bare"}`} title={tip} aria-label={text ? undefined : label} aria-pressed={on} aria-keyshortcuts={keys} disabled={disabled} onClick={run}>
      {icon && <Icon name={icon} />}
      {text && <span>{text}</span>}
    </button>
  );
}
