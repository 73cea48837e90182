/* Attach, and how it is given up: redirect begins when nobody is left on the
 * bare source (rule 10), and from then on the overlay never goes off
 * (migrator/cutover/{attach,return_to_source}.cc, daemon/{supervisor,
 * worker_overlay}.cc).
 *
 * Modelled: a holder that is on the bare source from the start, may open
 * again by the path and may fork once (the child has a higher number than its
 * parent, and a pass over /proc looks in that order); the re-anchorer: First()
 * with its freeze, Mount() and first thaw, Rest() with passes that look at one
 * process after the other, two clean ones in a row, then the call
 * StartRedirect, which may be given up at its deadline and answered later; its
 * death at any point; the worker, which serves the calls of one re-anchorer
 * after those of the one before (overlay_mu_), and its death with a successor
 * that goes on from the journal's phase; the supervisor, which after a failure
 * or a death sends another re-anchorer to take the overlay off, and the state
 * table, by which attach_failed and attached exclude each other.
 * Left out: the freeze itself, other mount namespaces (more doors,
 * covered in the same way before the next pass), stragglers that only read.
 * Taken for granted: a path walk that began before the overlay was on is over
 * when the first clean pass begins, and no descriptor of the tree waits unread
 * in a socket throughout both passes; nothing of either shows in /proc.
 *
 * Properties: no byte is claimed by two trees: when anybody writes to the bare
 * source, no redirect has begun; and the bare source never shows at DIR after
 * it has. Somebody always ends it: live, or as it was before.
 * Bounds: one holder and one fork, KILLS kills.
 * Mutations: NO_COVER, UNDO_UNASKED (the overlay goes off without the worker's
 * word that redirect has not begun).
 * In the code GIVE_UP (OverlayControl::GiveUpAttach) is the worker's word alone
 * and not journaled: after it nobody is left who would call StartRedirect.
 */
#ifndef KILLS
#define KILLS 2
#endif
#define PASSES 2
#define HOLDERS 2 /* the second is the child */

#define NOWHERE 0
#define BARE 1
#define OVERLAY 2
byte on[HOLDERS];     /* where its descriptor leads */
bit born[HOLDERS];
bit frozen;
bit covered;          /* DIR shows the overlay */
byte forks, opens;

#define ATTACHING 0
#define COPYING 1     /* redirect has begun */
#define ABORTED 2
byte phase;           /* in the journal */

#define REDIRECT 1
#define GIVE_UP 2
byte call[3];         /* of re-anchorer 1, 2, ... : what it asked, unread */
byte answer[3];       /* 0: none yet, 1: yes, 2: refused, 3: worker is gone */
bit closed[3];        /* the channel */
byte serving = 1;     /* whose calls the worker serves */
byte kills;

bit dead[3], ended[3];
bit undo, live_, aborted;

#define redirected (phase == COPYING)



proctype Reanchorer(byte me) {
  byte clean, i;
  bit found;
  if
  :: me == 1 -> skip
  :: me == 2 -> goto takeback
  fi;
  /* First(): all holders are stopped, the overlay goes on, they are moved */
  atomic { if :: dead[me] -> goto gone :: else -> frozen = 1 fi }
  atomic {
    if :: dead[me] -> goto gone :: else fi;
#ifndef NO_COVER
    covered = 1;
#endif
    i = 0;
    do
    :: i < HOLDERS -> if :: on[i] == BARE -> on[i] = OVERLAY :: else fi; i++
    :: else -> break
    od;
    i = 0;
    frozen = 0
  }
  /* Rest(): ScanTree, one process after the other */
  do
  :: clean < PASSES ->
     found = 0; i = 0;
     do
     :: atomic { i < HOLDERS && !dead[me] ->
          if
          :: born[i] && on[i] == BARE -> found = 1; on[i] = OVERLAY /* MoveOn */
          :: else
          fi;
          i++ }
     :: atomic { i == HOLDERS || dead[me] -> break }
     od;
     if :: dead[me] -> goto gone :: else fi;
     if :: found -> clean = 0 :: else -> clean++ fi
  :: else -> break
  od;
  clean = 0; i = 0; found = 0;
  atomic {
    if :: dead[me] -> goto gone :: else fi;
    answer[me] = 0;
    call[me] = REDIRECT
  }
  if
  :: atomic { answer[me] == 1 && !dead[me] -> live_ = 1; goto gone }
  :: atomic { answer[me] > 1 && !dead[me] }
  :: atomic { !dead[me] && answer[me] == 0 } /* its deadline */
  :: dead[me] -> goto gone
  fi;
takeback: /* RunReturn without a commit */
#ifndef UNDO_UNASKED
  atomic {
    if :: dead[me] -> goto gone :: else fi;
    if :: call[me] != 0 || answer[me] == 3 -> undo = 1; goto gone :: else fi;
    answer[me] = 0;
    call[me] = GIVE_UP
  }
  if
  :: atomic { answer[me] == 1 && !dead[me] }
  :: atomic { answer[me] == 2 && !dead[me] -> live_ = 1; goto gone }
  :: atomic { answer[me] == 3 && !dead[me] -> undo = 1; goto gone }
  :: dead[me] -> goto gone
  fi;
#endif
  atomic {
    if :: dead[me] -> goto gone :: else fi;
    assert(!redirected);
    covered = 0; /* ViewSwitch::ShowSource */
    i = 0;
    do
    :: i < HOLDERS -> if :: on[i] == OVERLAY -> on[i] = BARE :: else fi; i++
    :: else -> break
    od;
    i = 0;
    aborted = 1
  }
gone:
  atomic { ended[me] = 1; closed[me] = 1; clean = 0; i = 0; found = 0;
           if :: dead[me] -> frozen = 0 :: else fi }
}

/* One life after the other; what a life has not answered its end answers. */
active proctype Worker() {
end:
  do
  :: d_step { serving < 3 && call[serving] == REDIRECT ->
       call[serving] = 0;
       if
       :: phase == ATTACHING -> phase = COPYING; answer[serving] = 1
       :: else -> answer[serving] = 2
       fi }
  :: d_step { serving < 3 && call[serving] == REDIRECT && kills < KILLS &&
              phase == ATTACHING -> /* killed with the fact in the journal */
       kills++; phase = COPYING; call[serving] = 0; answer[serving] = 3 }
  :: d_step { serving < 3 && call[serving] == GIVE_UP ->
       call[serving] = 0;
       if
       :: phase == ATTACHING -> phase = ABORTED; answer[serving] = 1
       :: phase == ABORTED -> answer[serving] = 1
       :: else -> answer[serving] = 2
       fi }
  :: d_step { serving < 3 && call[serving] != 0 && kills < KILLS ->
       kills++; call[serving] = 0; answer[serving] = 3 } /* killed before */
  :: d_step { serving < 3 && closed[serving] && call[serving] == 0 ->
       serving++ } /* PeerGone */
  od
}

active proctype Supervisor() {
  atomic { born[0] = 1; on[0] = BARE; run Reanchorer(1) }
  do
  :: atomic { kills < KILLS && !ended[1] && !dead[1] -> kills++; dead[1] = 1 }
  :: ended[1] -> break
  od;
  atomic {
    if
    :: !live_ && !aborted -> undo = 0; run Reanchorer(2) /* undo_attach */
    :: else -> ended[2] = 1
    fi
  }
  ended[2];
  if
  :: undo -> skip /* once more, as the one before */
  :: else -> assert(live_ || aborted)
  fi;
  assert(!(live_ && aborted));
  assert(!live_ || redirected || undo)
}

active [HOLDERS] proctype Holder() {
  byte me = _pid - 2;
end:
  do
  :: atomic { !frozen && born[me] && on[me] == BARE -> /* writes */
       assert(!redirected) }
  :: atomic { !frozen && born[me] && opens < 2 -> opens++;
       on[me] = (covered -> OVERLAY : BARE) }
  :: atomic { !frozen && born[me] && forks < 1 && me == 0 -> forks++;
       born[1] = 1; on[1] = on[0] }
  :: atomic { !frozen && born[me] && on[me] != NOWHERE -> on[me] = NOWHERE }
  od
}
