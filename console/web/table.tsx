// Lists: with a filter, sorted by any column, a hundred rows at a time, so that ten thousand cost no more.
import type { ComponentChildren } from "preact";
import { useEffect, useId, useMemo, useRef, useState } from "preact/hooks";
import { count } from "./format";

export interface Column<T> {
  head: string;
  cell: (row: T) => ComponentChildren;
  /** What it is filtered and sorted by; not at all without. */
  by?: (row: T) => string | number;
  /** It has numbers, or is what one does with the row. */
  kind?: "number" | "actions" | "wide";
}

/** Rows of one page. */
const ROWS = 100;

const order = new Intl.Collator("en", { numeric: true });

function compare(one: string | number, other: string | number): number {
  if (typeof one === "number" && typeof other === "number") return one - other;
  return order.compare(String(one), String(other));
}

/** Told of when a question was closed, which gives the focus back to what may be gone. */
export const CLOSED = "bulkhead-question-closed";

/** Where in a list somebody was: the element that had the focus, and the row's place. */
interface Held {
  element: Element;
  row: number;
}

/** Gives the focus to the row that took the place of one that vanished under it; else it would be nowhere. */
function useFocusKept() {
  const list = useRef<HTMLDivElement>(null);
  const held = useRef<Held | null>(null);
  const mend = () => {
    const [node, was] = [list.current, held.current];
    const lost = document.activeElement === null || document.activeElement === document.body;
    if (!node || !was || was.element.isConnected || !lost) return;
    held.current = null;
    const rows = [...node.querySelectorAll("tbody > tr")];
    const row = rows[Math.min(was.row, rows.length - 1)];
    (row?.querySelector<HTMLElement>("button, a") ?? node).focus();
  };
  useEffect(mend);
  useEffect(() => {
    const moved = (event: FocusEvent) => {
      const element = event.target as Element;
      const row = element.closest("tbody > tr");
      if (row && list.current?.contains(row)) {
        held.current = { element, row: [...(row.parentElement?.children ?? [])].indexOf(row) };
      } else if (!element.closest("dialog")) {
        held.current = null;
      }
    };
    document.addEventListener("focusin", moved);
    document.addEventListener(CLOSED, mend);
    return () => {
      document.removeEventListener("focusin", moved);
      document.removeEventListener(CLOSED, mend);
    };
  }, []);
  return list;
}

interface Props<T> {
  /** What the list is of, for those who do not see it. */
  caption: string;
  columns: Column<T>[];
  rows: T[];
  id: (row: T) => string;
  /** What stands there without rows, and what to do then. */
  empty: ComponentChildren;
}

export function Table<T>({ caption, columns, rows, id, empty }: Props<T>) {
  const [filter, setFilter] = useState("");
  const [sorted, setSorted] = useState<[number, boolean] | null>(null);
  const [page, setPage] = useState(0);
  const box = useId();
  const list = useFocusKept();
  const found = useMemo(() => {
    const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (row: T) => columns.map((it) => (it.by ? String(it.by(row)) : "")).join(" ").toLowerCase();
    const kept = words.length === 0 ? rows : rows.filter((row) => words.every((word) => text(row).includes(word)));
    const by = sorted && columns[sorted[0]]?.by;
    if (!sorted || !by) return kept;
    const keyed = kept.map((row) => [by(row), row] as const);
    keyed.sort(([one], [other]) => compare(one, other) * (sorted[1] ? -1 : 1));
    return keyed.map(([, row]) => row);
  }, [rows, filter, sorted]);
  if (rows.length === 0) {
    return (
      <div class="empty" ref={list} tabIndex={-1}>
        {empty}
      </div>
    );
  }
  const pages = Math.max(1, Math.ceil(found.length / ROWS));
  const at = Math.min(page, pages - 1);
  const seen = found.slice(at * ROWS, (at + 1) * ROWS);
  const sort = (index: number) => setSorted((old) => (old?.[0] === index ? (old[1] ? null : [index, true]) : [index, false]));
  return (
    <div class="list" ref={list} tabIndex={-1}>
      {rows.length > 5 && (
        <div class="tools">
          <label for={box}>Filter</label>
          <input id={box} type="search" value={filter} onInput={(event) => (setFilter(event.currentTarget.value), setPage(0))} />
          <span class="quiet" role="status">
            {found.length === rows.length ? `${count(rows.length)} rows` : `${count(found.length)} of ${count(rows.length)} rows`}
          </span>
        </div>
      )}
      <table role="table" aria-label={caption} aria-rowcount={found.length + 1}>
        <thead role="rowgroup">
          <tr role="row">
            {columns.map((column, index) => (
              <th
                role="columnheader"
                scope="col"
                class={column.kind}
                aria-sort={sorted?.[0] === index ? (sorted[1] ? "descending" : "ascending") : undefined}
              >
                {column.by ? (
                  <button type="button" class="bare" onClick={() => sort(index)}>
                    {column.head}
                    <span aria-hidden="true">{sorted?.[0] === index ? (sorted[1] ? " ↓" : " ↑") : ""}</span>
                  </button>
                ) : (
                  <span class={column.kind === "actions" ? "unseen" : ""}>{column.head}</span>
                )}
              </th>
            ))}
          </tr>
        </thead>
        <tbody role="rowgroup">
          {seen.map((row, index) => (
            <tr role="row" key={id(row)} aria-rowindex={at * ROWS + index + 2}>
              {columns.map((column) => (
                <td role="cell" class={column.kind} data-label={column.head}>
                  <div>{column.cell(row)}</div>
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
      {found.length === 0 && <p class="empty">Nothing in this list has “{filter}”. Clear the filter to see all of it.</p>}
      {pages > 1 && (
        <nav class="pages" aria-label={`Pages of ${caption}`}>
          <button type="button" aria-disabled={at === 0} onClick={() => setPage(Math.max(0, at - 1))}>
            Previous
          </button>
          <span>
            Page {count(at + 1)} of {count(pages)}
          </span>
          <button type="button" aria-disabled={at === pages - 1} onClick={() => setPage(Math.min(pages - 1, at + 1))}>
            Next
          </button>
        </nav>
      )}
    </div>
  );
}
