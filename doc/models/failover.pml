/* Failover: the worker is killed at any point, its successor asks the kernel
 * for every unanswered request again (RESEND), and the intent records say how
 * far the predecessor came (fusefs/{session,once,intents,changes}).
 *
 * Modelled: the kernel's queue and replies, two serving threads a worker, each
 * a chain of the steps of Once::Do and of the reply; SIGKILL between any two
 * steps, where a thread that is inside a system call may finish that call
 * (exit waits for it) but nothing after it; the supervisor, which reaps before
 * it starts a successor (OnWorkerEnd); Session::Resume. Requests: unlink,
 * create, unlink of one name, one after the other since the kernel holds the
 * directory's lock until the reply; open(O_TRUNC), which takes no lock, beside
 * a writer who waits to see the file empty; an append while somebody appends
 * behind the overlay (attach).
 * Left out: fixed-offset writes, ftruncate, xattrs and renames (the kernel
 * holds the inodes' locks from before the request until the reply, so a
 * repetition meets what the first run left, as with the name here); the
 * table's limit of records (leftovers are at most one a thread and kill, the
 * oldest go first). Two things that a repetition cannot know are not asked of
 * it: whether an open that was killed between its truncation and the record of
 * it (no system call lies between) had truncated; then it does so again, and
 * what was written in between goes, as if it had been written before. And
 * whether the very bytes of an append came from a stranger.
 *
 * Properties: no act takes effect twice, every request is answered once, with
 * the result of one execution; nothing that was done after a reply is undone by
 * a repetition. Bounds: KILLS kills; one of the scenes NAMES, TRUNC, APPEND.
 * Mutations (tests/models has each found): NO_INTENTS, BEGIN_LATE, FORGET_EARLY,
 * NO_REPAIR, NO_REAP, RESEND_LATE, NO_RESEND.
 */
#ifndef KILLS
#define KILLS 3
#endif
#define RM 0  /* unlink(n), n is there */
#define MK 1  /* create(n), after RM's reply */
#define RM2 2 /* unlink(n), after MK's reply */
#define TR 3  /* open(f, O_TRUNC) */
#define AP 4  /* append to g */
#define REQS 5
#define OLD_SIZE 2

#define IDLE 0
#define PENDING 1   /* in the kernel's queue */
#define GIVEN 2     /* a worker has read it */
#define ANSWERED 3

byte ks[REQS];
bit resent[REQS];
byte result[REQS]; /* 0: success */

/* The intent table: it outlives the worker. */
#define NONE 0
#define BEGUN 1
#define COMPLETED 2
byte phase[REQS];
byte note[REQS];

byte effects[REQS];
byte n = 1;         /* the name: 0 none, 1 the old file, 2 the one created */
byte fsize = OLD_SIZE;
bit cut;            /* the truncation is on record */
bit wrote;          /* the writer's byte was acknowledged */
byte mine, others;  /* records in g */

byte life;          /* of the serving worker */
bit killed = 1;     /* no worker yet */
byte threads;       /* that exist, dying ones included */
bit apps;           /* have what they asked for */

#define alive (me == life && !killed)
#define readable (ks[RM] == PENDING || ks[MK] == PENDING || \
                  ks[RM2] == PENDING || ks[TR] == PENDING || ks[AP] == PENDING)

proctype Thread(byte me) {
  byte r, rec, err;
  bit again, seen, looked;
end:
  do
  :: !alive || apps -> goto gone
  :: atomic { /* Session::ReadOne */
       alive && readable ->
       if
       :: ks[RM] == PENDING -> r = RM
       :: ks[MK] == PENDING -> r = MK
       :: ks[RM2] == PENDING -> r = RM2
       :: ks[TR] == PENDING -> r = TR
       :: ks[AP] == PENDING -> r = AP
       fi;
       ks[r] = GIVEN;
       seen = resent[r]
     }
     /* Once::Once */
     atomic {
       if :: alive :: else -> goto gone fi;
       rec = (seen -> phase[r] : NONE);
       err = 0
     }
     if
     :: rec == COMPLETED -> goto reply
     :: else
     fi;
     again = (rec != NONE);
     /* SetNote, IntentTable::Begin */
#ifndef BEGIN_LATE
     atomic {
       if :: alive :: else -> goto gone fi;
       if
       :: !again && r == AP -> note[r] = mine + others
       :: else
       fi;
#ifndef NO_INTENTS
       phase[r] = BEGUN
#endif
     }
#endif
     /* The act: a system call that a dying thread may still finish. */
     if :: alive :: else -> goto gone fi;
     if
     :: !alive -> goto gone
     :: atomic {
          if
          :: r == RM || r == RM2 -> /* UnlinkOnce */
             if
             :: n != 0 -> n = 0; effects[r]++
#ifndef NO_REPAIR
             :: n == 0 && again          /* OrGone */
#endif
             :: else -> err = 2
             fi
          :: r == MK ->                 /* CreateOnce */
             if
             :: n == 0 -> n = 2; effects[r]++
#ifndef NO_REPAIR
             :: n != 0 && again          /* EEXIST: made by the predecessor */
#endif
             :: else -> err = 17
             fi
          :: r == TR -> fsize = 0; effects[r]++ /* OpenOnce: again if in doubt */
          :: r == AP && !again -> mine++; effects[r]++
          :: r == AP && again ->        /* AppendOnce: is it there? */
             if
             :: mine + others > note[r] && mine > 0
             :: else -> looked = 1 /* and others may append before it does */
             fi
          fi
        }
     fi;
     if
     :: looked ->
        atomic {
          if :: alive :: else -> goto gone fi;
          mine++; effects[r]++; looked = 0
        }
     :: else
     fi;
     assert(effects[r] <= 1 || r == TR);
     /* IntentTable::Complete */
     atomic {
       if :: alive :: else -> goto gone fi;
#ifndef NO_INTENTS
       phase[r] = COMPLETED;
#endif
       cut = (r == TR)
     }
#ifdef FORGET_EARLY
     atomic { if :: alive :: else -> goto gone fi; phase[r] = NONE }
#endif
reply: /* a system call too; ENOENT if the kernel has taken it back */
     if :: alive :: else -> goto gone fi;
     if
     :: !alive -> goto gone
     :: atomic {
          if
          :: ks[r] == GIVEN && resent[r] == seen ->
             ks[r] = ANSWERED;
             result[r] = err
          :: else
          fi
        }
     fi;
     atomic { /* Once::~Once: IntentTable::Drop */
       if :: alive :: else -> goto gone fi;
       phase[r] = NONE; r = 0; rec = 0; err = 0; again = 0; seen = 0; looked = 0
     }
  od;
gone:
  atomic { threads--; r = 0; rec = 0; err = 0; again = 0; seen = 0; looked = 0 }
}

inline Resend() { /* FUSE_NOTIFY_RESEND */
  d_step {
    r = 0;
    do
    :: r < REQS ->
       if :: ks[r] == GIVEN -> ks[r] = PENDING; resent[r] = 1 :: else fi;
       r++
    :: else -> break
    od;
    r = 0
  }
}

active proctype Supervisor() {
  byte kills, r;
  atomic { killed = 0; threads = 2; run Thread(0); run Thread(0) }
end:
  do
  :: atomic { kills < KILLS && !apps -> killed = 1; kills++ }
#ifndef NO_REAP
     threads == 0;
#endif
#ifdef RESEND_LATE
     atomic { life++; killed = 0; threads = threads + 2;
              run Thread(life); run Thread(life) }
     Resend()
#else
#ifndef NO_RESEND
     Resend();
#endif
     atomic { life++; killed = 0; threads = threads + 2;
              run Thread(life); run Thread(life) }
#endif
  od
}

inline Ask(which) {
  ks[which] = PENDING;
  ks[which] == ANSWERED;
  assert(result[which] == 0 && effects[which] == 1)
}

#ifdef NAMES
active proctype Names() {
  Ask(RM);
  assert(n == 0);
  Ask(MK);
  assert(n == 2);
  Ask(RM2);
  assert(n == 0);
  atomic { apps = 1; threads == 0; assert(n == 0) }
}

#elif defined TRUNC
active proctype Truncates() {
  ks[TR] = PENDING;
  ks[TR] == ANSWERED;
  assert(result[TR] == 0 && effects[TR] >= 1);
  atomic { apps = 1; threads == 0; assert(fsize == wrote) }
}

/* Sees the file empty and writes; its request is answered by the worker that
 * lives just then, and is not what this is about. */
active proctype Writes() {
end:
  atomic { fsize == 0 && cut && !killed -> fsize = 1; wrote = 1 }
}

#elif defined APPEND
active proctype Appends() {
  Ask(AP);
  atomic { apps = 1; threads == 0; assert(mine == 1) }
}

active proctype Stranger() { /* on the bare source, while attaching */
end:
  atomic { ks[AP] != IDLE -> others++ }
}
#endif
