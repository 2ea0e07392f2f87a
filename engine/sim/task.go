package sim

import "iter"

// task is an activity of a node as a coroutine: a client's write, a reader's batch, an apply. It runs until a
// disk is asked for something or until it has to wait for another task, and then gives the turn back. Nothing
// else runs meanwhile, so that which task goes on next is the seed's choice alone.
type task struct {
	name  string
	node  *node
	run   func()
	on    *routine  // that carries it out; nil before its first turn
	op    *clientOp // of a client's request
	until uint64    // step before which its disk does not answer
	waits bool      // for another task, when it last gave the turn back
	ended bool
}

// routine is a coroutine that carries out one task after the other: to make one for each costs more than most
// tasks do, and the race detector never forgets it.
type routine struct {
	next  func() (ended, alive bool)
	yield func(ended bool) bool
	job   func()
}

func newRoutine() *routine {
	r := &routine{}
	r.next, _ = iter.Pull(func(yield func(bool) bool) {
		r.yield = yield
		for {
			r.job()
			if !yield(true) {
				return
			}
		}
	})
	return r
}

// spawn makes a task of a node, which begins with its first turn.
func (w *World) spawn(n *node, name string, run func()) *task {
	t := &task{name: name, node: n, run: run}
	n.tasks = append(n.tasks, t)
	return t
}

// resume gives a task its turn.
func (w *World) resume(t *task) {
	before := w.running
	w.running = t
	t.waits = false
	if t.on == nil {
		w.begin(t)
	}
	if ended, _ := t.on.next(); ended {
		t.ended = true
		t.node.forget(t)
		w.idle.routines = append(w.idle.routines, t.on)
		t.on = nil
	}
	w.running = before
}

// begin gives a task a coroutine.
func (w *World) begin(t *task) {
	if n := len(w.idle.routines); n > 0 {
		t.on, w.idle.routines = w.idle.routines[n-1], w.idle.routines[:n-1]
	} else {
		t.on = newRoutine()
	}
	t.on.job = func() {
		defer w.explain()
		t.run()
	}
}

// turn gives the turn back until the task is chosen again. Outside of a task nothing can come between.
func (w *World) turn() {
	if t := w.running; t != nil {
		t.on.yield(false)
	}
}

// wait is the hook by which the engine waits for another of its activities.
func (w *World) wait(try func() bool) {
	for !try() {
		if w.running == nil {
			w.failf("something waits outside of every task: nobody would ever wake it")
		}
		w.running.waits = true
		w.turn()
	}
}

// forget takes an ended task off the list. The order of the others stays: the seed's choice goes by it.
func (n *node) forget(t *task) {
	for i, o := range n.tasks {
		if o == t {
			n.tasks = append(n.tasks[:i], n.tasks[i+1:]...)
			return
		}
	}
}

// drain lets every task of a dead node come to its end: its disk and files answer with errors by now.
func (w *World) drain(n *node) {
	for rounds := 0; len(n.tasks) > 0; rounds++ {
		if rounds > drainRounds {
			w.failf("%s is dead and its tasks do not end: %s", n.name, n.tasks[0].name)
		}
		for _, t := range append([]*task(nil), n.tasks...) {
			if !t.ended {
				w.resume(t)
			}
		}
	}
}

const drainRounds = 10000

// what names a task in a story.
func (t *task) what() string {
	if t == nil {
		return ""
	}
	return "(" + t.name + ")"
}
