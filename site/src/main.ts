import { mount } from "svelte";
import App from "./App.svelte";
import { distribution } from "./lib/sampling";
import { session } from "./lib/session.svelte";
import "./style.css";

mount(App, { target: document.getElementById("app")! });

// For whoever opens the console, the tests among them: ask the tokenizer, the model and the rules directly.
Object.assign(window, { gptcourse: { session, distribution } });
