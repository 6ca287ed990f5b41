// One line for the person about what came of what they did; screen readers say it.
import { signal } from "@preact/signals";

const said = signal<{ text: string; bad: boolean } | null>(null);
let timer: ReturnType<typeof setTimeout> | undefined;

export function say(text: string, bad = false): void {
  said.value = { text, bad };
  clearTimeout(timer);
  timer = setTimeout(() => (said.value = null), 10_000);
}

export function Said() {
  return (
    <div class="said" role="status">
      {said.value && (
        <p class={said.value.bad ? "bad" : "good"}>
          <span aria-hidden="true">{said.value.bad ? "✕" : "✓"}</span> {said.value.text}
          <button type="button" class="bare" aria-label="Dismiss this message" onClick={() => (said.value = null)}>
            ×
          </button>
        </p>
      )}
    </div>
  );
}
