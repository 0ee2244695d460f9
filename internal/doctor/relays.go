package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// transports in the order in which they are told, with their names.
var transports = []struct{ kind, name string }{{"udp", "UDP"}, {"tcp", "TCP"}, {"wss", "WebSocket"}}

// reach is what is known of one relay by one transport.
type reach struct {
	tried int
	best  *probe   // the fastest; nil: none succeeded
	at    []string // where it failed
	err   error    // how, first
}

func reachOf(probes []*probe, relay, transport string) (r reach) {
	for _, p := range probes {
		if p.relay.Name != relay || p.addr.Transport != transport {
			continue
		}
		r.tried++
		if p.err != nil {
			if r.err == nil {
				r.err = p.err
			}
			r.at = append(r.at, p.at())
			continue
		}
		if r.best == nil || r.best.seen.Unserved || !p.seen.Unserved && p.seen.RTT < r.best.seen.RTT {
			r.best = p
		}
	}
	return r
}

// relays says which relay is reached by what.
func (e *examination) relays(probes []*probe, nat NAT) (checks []Check) {
	for _, r := range e.m.Relays {
		up := slices.ContainsFunc(probes, func(p *probe) bool { return p.relay.Name == r.Name && p.err == nil })
		for _, t := range transports {
			switch got := reachOf(probes, r.Name, t.kind); {
			case got.tried == 0:
			case got.best != nil:
				checks = append(checks, reached(got.best))
				if t.kind == "udp" {
					checks = append(checks, secondPort(probes, r.Name, nat)...)
				}
			default:
				slices.Sort(got.at)
				c := Check{ID: "relay-" + t.kind, Of: r.Name, What: why(got.err) + " at " + strings.Join(slices.Compact(got.at), ", ")}
				c.Level, c.Mend = mendOf(r, t.kind, up, nat)
				checks = append(checks, c)
			}
		}
	}
	return checks
}

// reached tells of a relay's best address by one transport.
func reached(p *probe) Check {
	c := Check{ID: "relay-" + p.addr.Transport, Of: p.relay.Name, Level: OK}
	if p.seen.Unserved {
		c.Level, c.What = Hint, p.at()+" answers, but does not serve this machine: it may not know of it yet"
		c.Mend = "try again in a minute; else see on " + c.Of + ": fwd status, fwd peers"
		return c
	}
	c.RTT = float64(p.seen.RTT.Microseconds()) / 1000
	c.What = p.at() + ", " + millis(p.seen.RTT)
	return c
}

// mendOf says what to do about a transport by which r is not reached; up: it is by another one.
func mendOf(r Relay, transport string, up bool, nat NAT) (Level, string) {
	port := strconv.Itoa(int(firstPort(r, transport)))
	open := "open " + strings.ToUpper(wire(transport)) + " port " + port + " in the firewall of " + r.Name + " and its provider's"
	switch {
	case !up:
		return Wrong, "is fwd relay running on " + r.Name + ", and is port " + port + " (" + strings.ToUpper(wire(transport)) + ") open in its firewall and its provider's?"
	case transport == "wss": // for networks that let out nothing else
		return Hint, open
	case transport == "udp" && len(nat.deaf) > 1:
		return Wrong, "see NAT below"
	case transport == "udp" && len(nat.deaf) == 0: // it gets to other relays
		return Wrong, open
	}
	return Wrong, open + ", or towards it in this network's"
}

// secondPort tells of a relay whose reflector does not answer.
func secondPort(probes []*probe, relay string, nat NAT) []Check {
	i := slices.IndexFunc(probes, func(p *probe) bool { return p.relay.Name == relay && slices.Contains(nat.silent, p.seen.Reflector) })
	if i < 0 {
		return nil
	}
	port := int(probes[i].seen.Reflector.Port())
	return []Check{{ID: "relay-second", Of: relay, Level: Hint,
		What: fmt.Sprintf("no answer at UDP %d, by which it is learnt what the NAT here is like", port),
		Mend: fmt.Sprintf("open %d, UDP and TCP, and UDP %d in the firewall of %s and its provider's", port, port+1, relay)}}
}

func firstPort(r Relay, transport string) uint16 {
	for _, a := range r.Addrs {
		if a.Transport == transport {
			return a.Port
		}
	}
	return 0
}

func wire(transport string) string {
	if transport == "udp" {
		return "udp"
	}
	return "tcp"
}

// why is an error in a word or two; what tells nothing more than silence is silence.
func why(err error) string {
	var dns *net.DNSError
	switch {
	case errors.Is(err, errNoAddress), errors.As(err, &dns):
		return "name not found"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "no route"
	case err == nil, errors.Is(err, context.DeadlineExceeded), strings.Contains(err.Error(), "timeout"), strings.Contains(err.Error(), "deadline"):
		return "no answer"
	case strings.Contains(err.Error(), "peer id mismatch"):
		return "another peer answers"
	}
	return "not reached"
}

func millis(d time.Duration) string {
	switch ms := float64(d.Microseconds()) / 1000; {
	case ms < 1:
		return fmt.Sprintf("%.2f ms", ms)
	case ms < 10:
		return fmt.Sprintf("%.1f ms", ms)
	default:
		return fmt.Sprintf("%.0f ms", ms)
	}
}

// lookup finds the addresses behind the relays' names.
func (e *examination) lookup(ctx context.Context) []Check {
	ctx, cancel := context.WithTimeout(ctx, lookupWithin)
	defer cancel()
	var hosts []string
	for _, r := range e.m.Relays {
		for _, a := range r.Addrs {
			if _, err := netip.ParseAddr(a.Host); err != nil && !slices.Contains(hosts, a.Host) {
				hosts = append(hosts, a.Host)
			}
		}
	}
	checks := make([]Check, len(hosts))
	e.named = make(map[string][]netip.Addr)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i, h := range hosts {
		wg.Go(func() {
			addrs, err := e.m.Lookup(ctx, h)
			c := Check{ID: "dns", Of: h, Level: OK}
			var words []string
			for i, a := range addrs {
				addrs[i] = a.Unmap()
				words = append(words, addrs[i].String())
			}
			c.What = strings.Join(words, ", ")
			slices.SortFunc(addrs, netip.Addr.Compare) // IPv4 first: where it fails there is more to tell
			mu.Lock()
			e.named[h] = addrs
			mu.Unlock()
			if err != nil || len(addrs) == 0 {
				c.Level, c.What = Wrong, "the name leads to no address"
				c.Mend = "check this machine's DNS server (getent hosts " + h + ") and the name's records"
			}
			checks[i] = c
		})
	}
	wg.Wait()
	return checks
}

// nobody is an address that nobody has and no router knows a way to (RFC 5737): whoever answers there stands in between.
const nobody = "192.0.2.1"

// page is what a browser would get from a host.
type page struct {
	host   string
	status int    // 0: nothing
	leads  string // to which other host; "": to none
}

// wantsLogin: outright (RFC 6585 §6), or in the place of nobody. Other errors there are those of proxies that see to all
// web traffic, and let the rest through.
func (p page) wantsLogin() bool {
	return p.status == http.StatusNetworkAuthenticationRequired || p.host == nobody && p.status != 0 && p.status < 500
}

func (p page) String() string {
	switch {
	case p.status == http.StatusNetworkAuthenticationRequired:
		return "it says so, in the place of " + p.host
	case p.leads != "":
		return "something answers in the place of " + p.host + " and leads to " + p.leads
	}
	return "something answers in the place of " + p.host
}

// portal looks for a network that wants a login first, where no relay is reached. That a relay's host leads elsewhere may
// be its own doing.
func (e *examination) portal(ctx context.Context, probes []*probe) []Check {
	if e.m.Fetch == nil || len(probes) == 0 || slices.ContainsFunc(probes, func(p *probe) bool { return p.err == nil }) {
		return nil
	}
	var hosts []string
	for _, p := range probes {
		if !slices.Contains(hosts, p.addr.Host) && len(hosts) < 3 {
			hosts = append(hosts, p.addr.Host)
		}
	}
	pages := e.fetch(ctx, append(hosts, nobody))
	login := slices.IndexFunc(pages, page.wantsLogin)
	led := slices.IndexFunc(pages, func(p page) bool { return p.leads != "" })
	switch {
	case login >= 0:
		shown := pages[login]
		if led >= 0 {
			shown = pages[led]
		}
		return []Check{{ID: "portal", Level: Wrong, What: "this network seems to want a login first (captive portal): " + shown.String(),
			Mend: "open http://" + shown.host + "/ in a browser here and log in, then: fwd doctor"}}
	case led >= 0:
		return []Check{{ID: "portal", Level: Hint, What: "the web server at " + pages[led].host + " leads to " + pages[led].leads + ": its own, or this network wants a login first",
			Mend: "open http://" + pages[led].host + "/ in a browser here; log in where it asks for that, then: fwd doctor"}}
	}
	return nil
}

// fetch asks all hosts at once.
func (e *examination) fetch(ctx context.Context, hosts []string) []page {
	ctx, cancel := context.WithTimeout(ctx, fetchWithin)
	defer cancel()
	pages := make([]page, len(hosts))
	var wg sync.WaitGroup
	for i, h := range hosts {
		wg.Go(func() {
			pages[i].host = h
			status, location, err := e.m.Fetch(ctx, h)
			if err != nil {
				return
			}
			pages[i].status = status
			if to, err := url.Parse(location); err == nil && status/100 == 3 && to.Hostname() != h {
				pages[i].leads = to.Hostname()
			}
		})
	}
	wg.Wait()
	return pages
}

// proxy says whether the environment's proxy is of use.
func (e *examination) proxy(probes []*probe) []Check {
	switch {
	case e.m.NoProxy != "":
		return []Check{{ID: "proxy", Level: Wrong, What: e.m.NoProxy, Mend: "set HTTPS_PROXY=http://HOST:PORT, then: fwd stop"}}
	case e.m.Proxy == "":
		return nil
	}
	c := Check{ID: "proxy", Level: OK, What: "relays are also reached through " + e.m.Proxy}
	if !slices.ContainsFunc(probes, func(p *probe) bool { return p.err == nil && p.addr.Transport != "udp" }) && len(probes) > 0 {
		c.Level, c.What = Wrong, "no relay is reached, neither directly nor through "+e.m.Proxy
		c.Mend = "most proxies let CONNECT go to port 443 alone: on a relay, fwd relay --listen 4001 --listen 443"
	}
	return []Check{c}
}

// clock compares ours with what the owner signed and what relays say.
func (e *examination) clock(probes []*probe) []Check {
	const tolerated = 2 * time.Minute // rosters are exact to a second, certificates and expiry to an hour
	c := Check{ID: "clock", Level: OK, What: "agrees with the network's"}
	mend := "set it: timedatectl set-ntp true (systemd), or turn on network time"
	if behind := e.m.Signed.Sub(e.m.Now); !e.m.Signed.IsZero() && behind > tolerated {
		c.Level, c.What, c.Mend = Wrong, "at least "+span(behind)+" slow: the network's owner has signed later than that", mend
		return []Check{c}
	}
	var off []time.Duration
	for _, p := range probes {
		if p.err == nil && !p.seen.Clock.IsZero() {
			off = append(off, p.seen.Clock.Sub(e.m.Now))
		}
	}
	if len(off) == 0 {
		if e.m.Signed.IsZero() {
			c.What = "nothing to compare it with"
		} else {
			c.What = "not before the owner's last signature"
		}
		return []Check{c}
	}
	slices.Sort(off)
	switch d := off[len(off)/2]; {
	case d > tolerated:
		c.Level, c.What, c.Mend = Wrong, span(d)+" slow, by the relays' clocks", mend
	case d < -tolerated:
		c.Level, c.What, c.Mend = Wrong, span(-d)+" fast, by the relays' clocks", mend
	}
	return []Check{c}
}

func span(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%.0f days", d.Hours()/24)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%.0f hours", d.Hours())
	}
	return fmt.Sprintf("%.0f min", d.Minutes())
}
