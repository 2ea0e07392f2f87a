package sim

import "iter"

// task is an activity of a node as a coroutine: a client's write, a reader's batch, an apply. It runs until a
// disk is asked for something or until it has to wait for another task, and then gives the turn back. Nothing
// else runs meanwhile, so that which task goes on next is the seed's choice alone.
type task struct {
	name  string
	node  *node
	next  func() (struct{}, bool)
	stop  func()
	yield func(struct{}) bool
	op    *clientOp // of a client's request
	waits bool      // for another task, when it last gave the turn back
	until uint64    // step before which its disk does not answer
	ended bool
}

// spawn makes a task of a node, which begins with its first turn.
func (w *World) spawn(n *node, name string, run func()) *task {
	t := &task{name: name, node: n}
	t.next, t.stop = iter.Pull(func(yield func(struct{}) bool) {
		t.yield = yield
		defer w.explain()
		run()
	})
	n.tasks = append(n.tasks, t)
	return t
}

// resume gives a task its turn.
func (w *World) resume(t *task) {
	before := w.running
	w.running = t
	t.waits = false
	if _, more := t.next(); !more {
		t.ended = true
		t.node.forget(t)
	}
	w.running = before
}

// turn gives the turn back until the task is chosen again. Outside of a task nothing can come between.
func (w *World) turn() {
	if t := w.running; t != nil {
		t.yield(struct{}{})
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
