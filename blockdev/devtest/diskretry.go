package devtest

// RetryFlush lets later flushes cover also what a failed one should have made durable: a disk whose own cache
// still holds it, and not the page cache of a kernel, which gives up. What uses O_DIRECT meets only the former.
func (d *Disk) RetryFlush() {
	for _, n := range d.dirty {
		log := d.pages[n].log
		for i := range log {
			log[i].doubt = false
		}
	}
}
