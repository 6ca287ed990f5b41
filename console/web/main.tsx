// The console: begins with who one is.
import { render } from "preact";
import { App } from "./app";
import { start } from "./session";
import "./console.css";

const root = document.getElementById("console");
if (root) render(<App />, root);
void start();
