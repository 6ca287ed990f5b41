// What the calls answer, as server-api and http-api have it.

/** A whole number up to 2^64: a string of digits where JavaScript's numbers end. */
export type U64 = number | string;

export type Role = "viewer" | "operator" | "administrator";

export interface WhoAmI {
  user: string;
  role: Role;
  from: string;
  /** What answers: a file server or a VM host. */
  server: string;
}

export interface TokenMade {
  token: string;
  id: number;
  role: Role;
  expires: number;
}

export interface TokenInfo {
  id: number;
  user: string;
  role: Role;
  created: number;
  expires: number;
  note: string;
}

export interface Status {
  version: string;
  name: string;
  pid: number;
  uptime_s: number;
  listen: string[];
  connections: number;
  sessions: number;
  opens: number;
  files: number;
  shares: number;
  longest_turn_us: number;
}

export interface Session {
  id: U64;
  user: string;
  clients: string[];
  transports: string[];
  why_not_rdma: (string | null)[];
  dialect: string;
  cipher?: string;
  encrypted: boolean;
  signed: boolean;
  shares: string[];
  opens: number;
}

export interface Open {
  id: U64;
  session?: U64;
  user: string;
  share: string;
  path: string;
  directory: boolean;
  access: number;
  caching: string;
  locks: number;
}

export interface Lock {
  open: U64;
  user: string;
  share: string;
  path: string;
  offset: U64;
  length: U64;
  exclusive: boolean;
}

export interface Share {
  name: string;
  path: string;
  read_only: boolean;
  connected: number;
  opens: number;
  snapshots: number;
  shares_blocks: boolean;
  comment: string;
}

export interface Lun {
  number: number;
  path: string;
  size: U64;
  block: number;
  read_only: boolean;
  id: string;
  registrations: number;
  reserved: boolean;
}

export interface Target {
  name: string;
  luns: Lun[];
}

export interface TargetSession {
  id: U64;
  target: string;
  initiator: string;
  clients: string[];
  commands: number;
}

export interface WitnessNode {
  name: string;
  addresses: string[];
  state: string;
  own: boolean;
}

export interface WitnessClient {
  id: U64;
  client: string;
  user: string;
  version: number;
  net_name: string;
  share: string | null;
  address: string;
  waiting: boolean;
}

export interface Cause {
  cause: string;
  sentence: string;
  evidence: string[];
  since_s: number;
}

export interface Phase {
  phase: string;
  count: number;
  mean_us: number;
  p99_us: number;
}

/** What the server says of a share, a file or a LUN. */
export interface Report {
  subject: string;
  kind: string;
  sentence: string;
  causes: Cause[];
  window_s: number;
  operations: number;
  phases: Phase[];
}

/** What the server did in one step of its history. */
export interface HistoryPoint {
  time: number;
  seconds: number;
  reads: number;
  writes: number;
  others: number;
  received: U64;
  sent: U64;
  errors: number;
  p50_us: number;
  p99_us: number;
  sessions: number;
  opens: number;
  cpu_permille: number;
}

export interface AuditRecord {
  time: string;
  who: string;
  role: string;
  from: string;
  what: Record<string, unknown>;
  before: unknown;
  after: unknown;
  result: Record<string, unknown>;
}

/** An object of the configuration: its keys with their values. */
export type Declared = Record<"share" | "user" | "target", Record<string, unknown>[] | undefined>;

export interface ObjectChange {
  kind: string;
  name: string;
  action: "create" | "change" | "remove" | "nothing";
  difference: Record<string, [unknown, unknown]>;
  users: number;
}

// What a VM host answers, as host-api has it.

export interface VmSummary {
  name: string;
  state: string;
  vcpus: number;
  memory_mib: number;
  reason?: string;
}

export interface VmDefinition {
  name: string;
  memory_mib: number;
  vcpus: number;
  [key: string]: unknown;
}

export interface VmDisk {
  location: string;
  size: U64;
  reads: number;
  writes: number;
  flushes: number;
  read_bytes: U64;
  written_bytes: U64;
  errors: number;
  limited: number;
  pauses: number;
  longest_us: number;
  longest_pause_us: number;
}

export interface VmMove {
  peer: string;
  direction: string;
  outcome: string;
  rounds: { number: number; pages: number; zero_pages: number; bytes: U64; micros: number }[];
  bytes: U64;
  total_ms: number;
  downtime_ms: number;
  downtime_parts: [string, number][];
  mb_per_s: number;
}

export interface VmDetail {
  summary: VmSummary;
  definition: VmDefinition;
  reason?: string;
  disks: VmDisk[];
  pauses: number;
  longest_pause_us: number;
  last_move?: VmMove;
  waiting?: string[];
  memory?: { resident: U64; balloon?: { wanted: U64; has: U64 } };
  watchdog?: { enabled: boolean; left_ms?: number; expired: number };
  agent?: { state: string; reason?: string; os?: string; interfaces?: { name: string; addresses: string[] }[] };
}

export interface DiskReport {
  vm: string;
  disk: number;
  location: string;
  sentence: string;
  causes: { cause: string; sentence: string; evidence: string[] }[];
  operations: number;
  parts: { part: string; count: number; mean_us: number; p99_us: number }[];
}
