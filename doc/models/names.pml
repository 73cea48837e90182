/* Names: one directory with two names, its redo records, the applier, the
 * barrier and the burial, against kills of the worker and power cuts
 * (fusefs/redo, migrator/copy/{applier,barrier,victims}, core/state/recovery).
 *
 * Modelled: three durability domains. The source's changes and the journal's
 * facts each become durable in their order, at any time or by a sync; a power
 * cut takes what is left. The target is a server: durable at once. An
 * application renames, unlinks and creates; each change is Redo::Begin (hot and
 * dirty, durable where not hot yet), the act, EndPlaces. A killed request is
 * resent and begun again. The applier takes a place, looks at the source, then
 * detaches and places, then says clean (Redo::Done). Barrier::Now syncs and
 * unmarks. Victims destroy what has no name. A successor folds the journal; on
 * another boot it owes the hot directory a comparison, which it pays by looking
 * at both names.
 * Left out: attributes and more directories (their records do not touch
 * another's); what a successor scans without owing it, which only looks more
 * often; bytes (an object that lives has them). Two appliers exclude each other
 * by PlaceLocks.
 *
 * Properties: in the end, with nothing dirty and nothing owed, the target has
 * the source's names (none lost, none mixed), and no object is destroyed that
 * the source may name, then or after a power cut. Bounds: OPS changes, KILLS
 * kills, CUTS power cuts.
 * Mutations: BEGIN_LATE, HOT_UNSYNCED, CLEAN_ALWAYS, NO_OWED, OWED_UNSYNCED,
 * UNHOT_DIRTY, BURY_UNSYNCED.
 */
#ifndef OPS
#define OPS 2
#endif
#ifndef KILLS
#define KILLS 1
#endif
#ifndef CUTS
#define CUTS 2
#endif
#define NAMES 2
#define FRESH 3  /* objects 1 and 2 are there at first, 3 and 4 are created */
#define MOST 5

/* A state of the source is one byte a name; of the journal some bits. */
#define PACK(a, b) (a + 8 * b)
byte src[NAMES];        /* as applications see it */
byte src_durable = PACK(1, 2);
chan src_queue = [3] of { byte };

#define DIRTY0 1
#define DIRTY1 2
#define HOT 4
#define OWED 8
#define BOOT 16 /* parity of the boot whose session is written */
byte jour, jour_durable;
chan jour_queue = [5] of { byte };

byte tgt[NAMES];
bit destroyed[MOST];

/* The worker's memory. */
byte life;
byte in_flight[NAMES], generation[NAMES];
bit hot_durable;
byte changes;           /* of the hot directory */
bit up;                 /* serves */
bit boot;
byte kills, cuts, ops, fresh = FRESH;
bit over;

inline Append(value) {
  atomic {
    if
    :: full(jour_queue) -> jour_queue ? jour_durable
    :: nfull(jour_queue)
    fi;
    jour = value;
    jour_queue ! jour
  }
}
inline SyncJournal() {
  do
  :: jour_queue ? [_] -> jour_queue ? jour_durable
  :: empty(jour_queue) -> break
  od
}
inline SyncSource() {
  do
  :: src_queue ? [_] -> src_queue ? src_durable
  :: empty(src_queue) -> break
  od
}

#define live (up && me == life)
/* no name on either side; before the sync begins */
#define dead(o) (src[0] != o && src[1] != o && tgt[0] != o && tgt[1] != o && \
                 !destroyed[o])

/* --- the application, and the worker's thread that serves it */
proctype Serve(byte me) {
  byte kind, x, must;
end:
  do
  :: atomic { live && ops < OPS && !over -> ops++;
       if :: kind = 0 :: kind = 1 :: kind = 2 fi;
       if :: x = 0 :: x = 1 fi }
     /* Redo::Start; a rename is dirty at both names */
#ifndef BEGIN_LATE
     atomic {
       if :: live :: else -> goto gone fi;
       must = 0;
       in_flight[x]++; generation[x]++;
       if :: kind == 1 -> in_flight[1 - x]++; generation[1 - x]++ :: else fi;
       changes++;
       if :: !(jour & HOT) -> hot_durable = 0 :: else fi;
       must = !hot_durable;
       Append(jour | HOT | (kind == 1 -> DIRTY0 + DIRTY1 : 1 << x))
     }
#ifndef HOT_UNSYNCED
     atomic {
       if :: live :: else -> goto gone fi;
       if :: must -> SyncJournal(); hot_durable = 1 :: else fi
     }
#endif
#endif
     /* the change of the source */
     atomic {
       if :: live :: else -> goto gone fi;
       if
       :: kind == 0 && src[x] != 0 -> src[x] = 0                 /* unlink */
       :: kind == 1 && src[x] != 0 -> src[1 - x] = src[x]; src[x] = 0
       :: kind == 2 && src[x] == 0 && fresh < MOST -> src[x] = fresh; fresh++
       :: else
       fi;
       if :: full(src_queue) -> src_queue ? src_durable :: nfull(src_queue) fi;
       src_queue ! PACK(src[0], src[1])
     }
#ifdef BEGIN_LATE
     atomic {
       if :: live :: else -> goto gone fi;
       in_flight[x]++; generation[x]++;
       if :: kind == 1 -> in_flight[1 - x]++; generation[1 - x]++ :: else fi;
       changes++;
       Append(jour | HOT | (kind == 1 -> DIRTY0 + DIRTY1 : 1 << x));
       SyncJournal()
     }
#endif
     atomic { /* Redo::EndPlaces, and the reply */
       if :: live :: else -> goto gone fi;
       in_flight[x]--; generation[x]++;
       if :: kind == 1 -> in_flight[1 - x]--; generation[1 - x]++ :: else fi;
       kind = 0; x = 0; must = 0
     }
  :: atomic { !live || over -> goto gone }
  od;
gone: skip
}

/* --- the applier: Take, TrySyncEntry, Done; and the owed comparison */
proctype Apply(byte me) {
  byte x, taken, seen;
  bit paying;
end:
again:
  do
  :: atomic { live && (jour & DIRTY0) && in_flight[0] == 0 -> x = 0 }
     goto sync;
  :: atomic { live && (jour & DIRTY1) && in_flight[1] == 0 -> x = 1 }
     goto sync;
  :: atomic { live && (jour & OWED) && !(jour & (DIRTY0 | DIRTY1)) ->
       paying = 1; x = 0 }
sync:
     atomic {
       if :: live :: else -> goto gone fi;
       taken = generation[x];
       seen = src[x] /* LookAtSource */
     }
     atomic { /* LookAtTarget, Detach, and no more in this step */
       if :: live :: else -> goto gone fi;
       if :: tgt[x] != seen -> tgt[x] = 0 :: else fi
     }
     atomic { /* Ensure and Place; a file keeps its other names */
       if :: live :: else -> goto gone fi;
       if
       :: tgt[x] != seen && destroyed[seen] -> /* ESTALE: Redo::Retry */
          paying = 0; x = 0; taken = 0; seen = 0; goto again
       :: tgt[x] != seen && !destroyed[seen] -> tgt[x] = seen
       :: else
       fi
     }
     atomic { /* Redo::Done, Redo::PaidOwed */
       if :: live :: else -> goto gone fi;
       if
       :: paying && x == 0 -> x = 1; goto sync
       :: paying && x == 1 -> Append(jour & ~OWED)
       :: !paying ->
          if
#ifdef CLEAN_ALWAYS
          :: true -> Append(jour & ~(1 << x))
#else
          :: in_flight[x] == 0 && generation[x] == taken ->
             Append(jour & ~(1 << x))
          :: else
#endif
          fi
       fi;
       paying = 0; x = 0; taken = 0; seen = 0
     }
  :: atomic { !live -> goto gone }
  od;
gone: skip
}

/* --- Barrier::Now and Victims::Bury */
proctype Barrier(byte me) {
  byte had, v;
  bit may;
end:
  do
  :: atomic { live && (jour & HOT) && ops > 0 -> /* Redo::BeginBarrier */
#ifdef UNHOT_DIRTY
       may = 1;
#else
       may = !(jour & (DIRTY0 | DIRTY1));
#endif
       had = changes }
     atomic { if :: live :: else -> goto gone fi; SyncSource(); SyncJournal() }
     atomic { /* Redo::EndBarrier */
       if :: live :: else -> goto gone fi;
       if
       :: may && changes == had -> Append(jour & ~HOT); hot_durable = 0
       :: else
       fi;
       may = 0; had = 0
     }
  :: atomic { live && dead(1) -> v = 1 } /* Victims::BuryOnce */
     goto bury;
  :: atomic { live && dead(2) -> v = 2 }
bury:
#ifndef BURY_UNSYNCED
     atomic { if :: live :: else -> goto gone fi; SyncSource() }
#endif
     atomic {
       if :: live :: else -> goto gone fi;
       destroyed[v] = 1;
       v = 0
     }
  :: atomic { !live -> goto gone }
  od;
gone: skip
}

inline Start() { /* WorkerParts::Make: fold, FactsOfNewSession, StartServing */
  in_flight[0] = 0; in_flight[1] = 0;
  changes = 0;
  hot_durable = 1;
  if
  :: ((jour & BOOT) != 0) != boot ->
#ifdef OWED_UNSYNCED /* the session before the debts, not in one sync */
     Append(jour ^ BOOT);
     SyncJournal();
     if :: jour & HOT -> Append(jour | OWED) :: else fi
#else
#ifndef NO_OWED
     if :: jour & HOT -> Append(jour | OWED) :: else fi;
#endif
     Append(jour ^ BOOT)
#endif
  :: else
  fi;
#ifndef OWED_UNSYNCED
  SyncJournal();
#endif
  life++;
  up = 1;
  run Serve(life); run Apply(life); run Barrier(life)
}

init {
  atomic { src[0] = 1; src[1] = 2; tgt[0] = 1; tgt[1] = 2; Start() }
end:
  do
  :: atomic { up && kills < KILLS && !over -> kills++; up = 0 }
     atomic { _nr_pr == 2 -> /* its operation is resent */
       if :: in_flight[0] + in_flight[1] > 0 && ops > 0 -> ops-- :: else fi;
       Start() }
  :: atomic { up && cuts < CUTS && !over -> cuts++; up = 0;
       /* what became durable by itself in time */
       do
       :: jour_queue ? [_] -> jour_queue ? jour_durable
       :: break
       od;
       do
       :: src_queue ? [_] -> src_queue ? src_durable
       :: break
       od;
       do :: jour_queue ? _ :: empty(jour_queue) -> break od;
       do :: src_queue ? _ :: empty(src_queue) -> break od;
       jour = jour_durable;
       src[0] = src_durable & 7;
       src[1] = src_durable >> 3;
       boot = !boot }
     atomic { _nr_pr == 2 ->
       if :: src[0] != 0 -> assert(!destroyed[src[0]]) :: else fi;
       if :: src[1] != 0 -> assert(!destroyed[src[1]]) :: else fi;
       Start() }
  :: atomic { /* nothing is left to do */
       up && !over && in_flight[0] + in_flight[1] == 0 &&
       !(jour & (DIRTY0 | DIRTY1 | OWED)) ->
       over = 1 }
  od
}

active proctype End() {
end:
  atomic {
    over && in_flight[0] + in_flight[1] == 0 &&
    !(jour & (DIRTY0 | DIRTY1 | OWED)) ->
    assert(tgt[0] == src[0] && tgt[1] == src[1]);
    assert(!destroyed[src[0]] && !destroyed[src[1]])
  }
}
