package daemon

import (
	"slices"

	"fwd/identity"
)

// Names are the words that a shell may complete, from memory: it asks nobody.
type Names struct {
	Services []string `json:"services"` // of other machines: short names, and long ones once seen
	Machines []string `json:"machines"`
	Tags     []string `json:"tags"`
	Exposed  []string `json:"exposed"` // here
	Locals   []string `json:"locals"`  // of forwards here
}

func (d *Daemon) names(emit func(Event)) error {
	n := Names{Services: []string{}, Machines: []string{}, Tags: []string{}, Exposed: []string{}, Locals: []string{}}
	if roster := d.book.Current(); roster != nil {
		for name, p := range roster.Services {
			if p != d.self {
				n.Services = append(n.Services, name)
			}
		}
		for _, e := range roster.Entries {
			n.Machines = append(n.Machines, e.Name)
			n.Tags = append(n.Tags, e.Tags...)
			if e.Peer != d.self && e.Caps&identity.Expose != 0 {
				d.mu.Lock()
				for _, s := range d.offered[e.Peer].services {
					n.Services = append(n.Services, s.Name+"."+e.Name)
				}
				d.mu.Unlock()
			}
		}
	}
	d.mu.Lock()
	for _, svc := range d.services {
		n.Exposed = append(n.Exposed, svc.name)
	}
	for f := range d.forwards {
		for _, end := range f.localEnds() {
			if end.local != "" {
				n.Locals = append(n.Locals, end.local)
			}
		}
	}
	for s := range d.socks {
		n.Locals = append(n.Locals, s.local)
	}
	d.mu.Unlock()
	d.state.get(func(s stateFile) {
		for _, r := range s.Kept.Exposes {
			n.Exposed = append(n.Exposed, exposeName(r))
		}
	})
	for _, list := range []*[]string{&n.Services, &n.Machines, &n.Tags, &n.Exposed, &n.Locals} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return emitResult(emit, "names", n)
}
