package daemon

import (
	"context"
	"encoding/json"
	"net"
	"strings"

	"fwd/forward"
)

// A wish is one expose, connect or socks that no terminal holds: the daemon keeps it
// up. Its key says which one it is when fwd.toml is read again; everything
// else about it can change while its connections go on.
type wish struct {
	key     string
	from    string
	expose  *ExposeRequest // one of the three
	connect *ConnectRequest
	socks   *SocksRequest
}

// Whence a wish is, as status tells it.
const (
	fromCommand = "command" // somebody's terminal holds it
	fromKept    = "kept"
	fromConfig  = "config"
)

func exposeWish(r ExposeRequest, from string) wish {
	r.Keep = false
	return wish{key: "expose " + exposeKey(r), from: from, expose: &r}
}

// connectWish: the local address as it is printed is part of which one it is.
func connectWish(r ConnectRequest, from string) wish {
	r.Keep, r.Timeout = false, 0     // an offline machine is waited for
	r.Name = strings.ToLower(r.Name) // as connect does
	key := "connect " + r.Name
	if local, err := forward.ParseLocal(r.Local); err == nil && !local.Auto() {
		key += " at " + local.String()
	}
	return wish{key: key, from: from, connect: &r}
}

func socksWish(r SocksRequest, from string) wish {
	r.Keep = false
	key := "socks"
	if local, err := r.local(); err == nil {
		key += " at " + local.String()
	}
	return wish{key: key, from: from, socks: &r}
}

// exposeKey tells the service from the one of the same name for the other protocol.
func exposeKey(r ExposeRequest) string {
	target, err := forward.ParseTarget(r.Target)
	return serviceKey(exposeName(r), err == nil && target.UDP())
}

// exposeName is what the service is called.
func exposeName(r ExposeRequest) string {
	if r.Name != "" {
		return r.Name
	}
	target, err := forward.ParseTarget(r.Target)
	if err != nil {
		return ""
	}
	return target.DefaultName()
}

// fulfil does what is wished until ctx ends or it cannot be.
func (w wish) fulfil(ctx context.Context, d *Daemon, emit func(Event)) error {
	switch {
	case w.expose != nil:
		return d.expose(ctx, *w.expose, w.from, emit)
	case w.socks != nil:
		return d.serveSocks(ctx, *w.socks, w.from, emit)
	}
	return d.connect(ctx, *w.connect, w.from, emit, nil)
}

// alter has what stands of an older w go by its words; SOCKS has none that could change.
func (w wish) alter(d *Daemon) error {
	switch {
	case w.expose != nil:
		return d.changeService(*w.expose)
	case w.connect != nil:
		return d.changeForward(w)
	}
	return nil
}

// word is the service that an entry leads to, as it was written.
func (w wish) word() string {
	if w.connect != nil {
		return w.connect.Name
	}
	return socksNames
}

// fulfils: the event that says so.
func (e Event) fulfils() bool { return e.Event == "exposed" || e.Event == "listening" }

// same: nothing about it has changed.
func (w wish) same(o wish) bool {
	a, _ := json.Marshal([]any{w.expose, w.connect, w.socks})
	b, _ := json.Marshal([]any{o.expose, o.connect, o.socks})
	return string(a) == string(b)
}

// means: is w what an unexpose or disconnect names?
func (w wish) means(request any) bool {
	switch r := request.(type) {
	case UnexposeRequest:
		if w.expose == nil {
			return false
		}
		key := exposeKey(*w.expose)
		return exposeName(*w.expose) == r.Name || key == r.Name || key+tcpSuffix == r.Name
	case DisconnectRequest:
		if w.socks != nil {
			local, err := w.socks.local()
			return err == nil && meansLocal(r.Local, local.String(), socksNames)
		}
		if w.connect == nil {
			return false
		}
		local, err := forward.ParseLocal(w.connect.Local)
		return err == nil && meansLocal(r.Local, local.String(), w.connect.Name)
	}
	return false
}

// meansLocal: a forward is named by its local address, its port alone, or its service, in capitals too;
// "/udp" behind the address may be left out.
func meansLocal(word, local, service string) bool {
	if word == "" || word == local || strings.EqualFold(word, service) {
		return word != ""
	}
	word, local = withoutUDP(word), withoutUDP(local)
	if _, port, _ := net.SplitHostPort(local); word == local || word == port {
		return true
	}
	l, err := forward.ParseLocal(local)
	for i := 0; err == nil && l.Ports() > 1 && i < l.Ports(); i++ {
		one := l.At(i).String()
		if _, port, _ := net.SplitHostPort(one); word == one || word == port {
			return true
		}
	}
	return false
}
