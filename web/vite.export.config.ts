import { defineConfig } from "vite";

/** The page that `fewstep export --to web` writes; its service worker keeps its name and its place. */
export default defineConfig({
  root: "export",
  base: "./",
  build: {
    outDir: "../../src/fewstep/export/static",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: false,
    assetsInlineLimit: 0,
    reportCompressedSize: true,
    rollupOptions: {
      input: { index: "export/index.html", sw: "src/export/sw.ts" },
      output: { entryFileNames: ({ name }) => (name === "sw" ? "sw.js" : "assets/[name]-[hash].js") },
    },
  },
  worker: { format: "es" },
});
