import { svelte } from "@sveltejs/vite-plugin-svelte";
import { readFileSync } from "node:fs";
import { defineConfig, type Plugin } from "vite";

// The one place of the repository's address.
const project = readFileSync(new URL("../pyproject.toml", import.meta.url), "utf-8");
const repository = /^Repository = "(.*)"$/m.exec(project)![1];

/** Classic scripts, as a page that is opened from a folder (file://) may not load modules. */
function classicScripts(): Plugin {
  return {
    name: "classic-scripts",
    enforce: "post",
    transformIndexHtml: (html) =>
      html.replace(/<script type="module" crossorigin/g, "<script defer").replace(/ crossorigin/g, ""),
  };
}

export default defineConfig({
  base: "./",
  define: {
    __REPOSITORY__: JSON.stringify(repository),
    __NOTEBOOKS__: JSON.stringify(process.env.NOTEBOOKS ?? `${repository}/blob/main/notebooks/NAME.ipynb`),
  },
  plugins: [svelte(), classicScripts()],
  build: { modulePreload: false, rollupOptions: { output: { format: "iife" } } },
  worker: { format: "iife" },
});
