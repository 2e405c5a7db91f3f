import { defineConfig } from "vitest/config";

export default defineConfig({
  base: "./",
  build: {
    outDir: "../src/fewstep/serve/static",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: false,
    assetsInlineLimit: 0,
    reportCompressedSize: true,
  },
  worker: { format: "es" },
  server: { proxy: { "/api": { target: "http://127.0.0.1:7860", ws: true }, "/sdapi": "http://127.0.0.1:7860" } },
  test: { include: ["tests/**/*.test.ts"] },
});
