// Which page is seen: what is behind # in the address.
import { signal } from "@preact/signals";

function parts(): string[] {
  const path = location.hash.replace(/^#\/?/, "");
  return path.split("/").map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
}

export const route = signal<string[]>(parts());

addEventListener("hashchange", () => {
  route.value = parts();
});

/** The address of a page. */
export function to(...path: string[]): string {
  return `#/${path.map(encodeURIComponent).join("/")}`;
}
