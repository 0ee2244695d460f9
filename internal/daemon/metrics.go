package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics are the figures of status, in Prometheus' words, at /metrics of an
// address of its own (--metrics, or fwd.toml's key). Each scrape reads the
// rooms; nothing is counted twice, and nothing runs between scrapes.
//
// Services and machines are labels by their names, so whoever can read the
// address learns these. It is loopback's unless another was asked for.

// A metric is one name, told once: its value is found at each scrape.
type metric struct {
	*prometheus.Desc
	kind prometheus.ValueType
}

func gauge(name, help string, labels ...string) metric {
	return metric{prometheus.NewDesc("fwd_"+name, help, labels, nil), prometheus.GaugeValue}
}

func counter(name, help string, labels ...string) metric {
	return metric{prometheus.NewDesc("fwd_"+name+"_total", help, labels, nil), prometheus.CounterValue}
}

// metrics is the collector.
type metrics struct {
	d *Daemon

	build, sessions, opened, bytes, migrations, refused  metric
	services, forwards, wishes                           metric
	paths, pathRTT                                       metric
	relayConnected, relayReserved, relayRTT              metric
	epoch, age, peers, heartbeat                         metric
	reservations, circuits, relayed, monthBytes, records metric
}

func newMetrics(d *Daemon) *metrics {
	return &metrics{
		d:     d,
		build: gauge("build_info", "Constant 1; the version is a label.", "version"),

		sessions:   gauge("sessions", "Forwarded connections now. Detached ones wait for a path.", "role", "state"),
		opened:     counter("sessions_opened", "Forwarded connections since the start.", "role", "service"),
		bytes:      counter("session_bytes", "Bytes of forwarded connections, as their applications see them.", "role", "service", "direction"),
		migrations: counter("session_migrations", "Times that a lane of connections moved to another stream: a better path, or a broken one."),
		refused:    counter("session_refusals", "Connections that this machine's services refused.", "code"),

		services: gauge("services", "Services on offer here."),
		forwards: gauge("forwards", "Local ports at which services of others appear."),
		wishes:   gauge("wishes", "What fwd.toml and --keep ask for, by how it fares.", "state"),

		paths:   gauge("paths", "Machines connected with, by the kind of path.", "kind"),
		pathRTT: gauge("path_rtt_seconds", "Round trip to a machine that sessions or forwards are with.", "machine", "kind"),

		relayConnected: gauge("relay_connected", "1 if the relay is connected.", "relay"),
		relayReserved:  gauge("relay_reserved", "1 if the relay holds a reservation for this machine.", "relay"),
		relayRTT:       gauge("relay_rtt_seconds", "Round trip to the relay.", "relay"),

		epoch:     gauge("roster_epoch", "Number of the roster held here: it grows with each change."),
		age:       gauge("roster_age_seconds", "Time since the roster held here was signed."),
		peers:     gauge("roster_peers", "Machines on the roster."),
		heartbeat: gauge("roster_heartbeat_age_seconds", "Time since the owner was last known to stand by this roster; it does so hourly."),

		reservations: gauge("relaying_reservations", "Machines that hold a reservation at this relay."),
		circuits:     gauge("relaying_circuits", "Circuits open through this relay."),
		relayed:      counter("relaying_bytes", "Bytes relayed since the start, each once."),
		monthBytes:   gauge("relaying_month_bytes", "Bytes relayed in this calendar month (UTC), which a monthly quota bounds."),
		records:      gauge("relaying_records", "Records at this relay's rendezvous point."),
	}
}

func (m *metrics) all() []metric {
	return []metric{m.build, m.sessions, m.opened, m.bytes, m.migrations, m.refused, m.services, m.forwards, m.wishes, m.paths, m.pathRTT,
		m.relayConnected, m.relayReserved, m.relayRTT, m.epoch, m.age, m.peers, m.heartbeat,
		m.reservations, m.circuits, m.relayed, m.monthBytes, m.records}
}

// Describe is prometheus.Collector's.
func (m *metrics) Describe(descs chan<- *prometheus.Desc) {
	for _, one := range m.all() {
		descs <- one.Desc
	}
}

// Collect is prometheus.Collector's: one look at the rooms.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	d := m.d
	give := func(one metric, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(one.Desc, one.kind, value, labels...)
	}
	s := d.status()
	give(m.build, 1, s.Version)
	give(m.services, float64(len(s.Services)))
	give(m.forwards, float64(len(s.Forwards)))

	type roleState struct{ role, state string }
	sessions := map[roleState]int{{"entry", "open"}: 0, {"entry", "detached"}: 0, {"exit", "open"}: 0, {"exit", "detached"}: 0}
	for _, v := range s.Sessions {
		sessions[roleState{v.Role, v.State}]++
	}
	for k, n := range sessions {
		give(m.sessions, float64(n), k.role, k.state)
	}

	totals := d.totals()
	give(m.migrations, float64(totals.Migrations))
	for code, n := range totals.Refused {
		give(m.refused, float64(n), code.String())
	}
	type roleService struct{ role, service string }
	type sums struct{ opened, sent, received int64 }
	byService := map[roleService]sums{} // of all peers
	for _, t := range totals.Traffic {
		k := roleService{t.Role, t.Service}
		v := byService[k]
		byService[k] = sums{v.opened + t.Opened, v.sent + t.Sent, v.received + t.Received}
	}
	for k, v := range byService {
		give(m.opened, float64(v.opened), k.role, k.service)
		give(m.bytes, float64(v.sent), k.role, k.service, "sent")
		give(m.bytes, float64(v.received), k.role, k.service, "received")
	}

	wishes := map[string]int{stateUp: 0, stateTrying: 0, stateFailing: 0, stateEnded: 0}
	for _, w := range s.Wishes {
		wishes[w.State]++
	}
	for state, n := range wishes {
		give(m.wishes, float64(n), state)
	}

	kinds := map[string]int{"direct": 0, "relay": 0}
	for _, p := range d.node.Connected() {
		if path, ok := d.node.Path(p); ok && d.member(p) {
			kinds[path.Kind]++
		}
	}
	for kind, n := range kinds {
		give(m.paths, float64(n), kind)
	}
	for _, w := range s.Paths {
		if w.Path != nil && w.Path.RTT > 0 {
			give(m.pathRTT, w.Path.RTT/1000, w.Machine, w.Path.Kind)
		}
	}
	for _, r := range s.Relays {
		give(m.relayConnected, one(r.Connected), r.Name)
		give(m.relayReserved, one(r.Reserved), r.Name)
		if r.RTT > 0 {
			give(m.relayRTT, r.RTT/1000, r.Name)
		}
	}

	if roster := d.book.Current(); roster != nil {
		give(m.epoch, float64(roster.Epoch))
		give(m.age, time.Since(roster.Issued).Seconds())
		give(m.peers, float64(len(roster.Entries)))
		if at := d.book.Fresh(); !at.IsZero() {
			give(m.heartbeat, time.Since(at).Seconds())
		}
	}
	if d.relay != nil {
		stats := d.relay.Stats()
		give(m.reservations, float64(stats.Reservations))
		give(m.circuits, float64(stats.Circuits))
		give(m.relayed, float64(stats.Bytes))
		give(m.monthBytes, float64(d.relay.Usage().Bytes))
		give(m.records, float64(stats.Records))
	}
}

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// metricsAddr reads what --metrics takes: PORT and :PORT are loopback's,
// ADDR:PORT is where it says, so that nothing but loopback is open unasked.
func metricsAddr(word string) (string, error) {
	host, port, err := net.SplitHostPort(word)
	if err != nil {
		host, port = "", word
	}
	if host == "" {
		host = "127.0.0.1"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 && port != "0" {
		return "", fmt.Errorf("metrics address %q is neither PORT, of loopback, nor ADDR:PORT", word)
	}
	return net.JoinHostPort(host, port), nil
}

// listenMetrics opens the address, "" for none.
func listenMetrics(word string) (net.Listener, error) {
	if word == "" {
		return nil, nil
	}
	addr, err := metricsAddr(word)
	if err != nil {
		return nil, usage("--metrics 9464", "%v", err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fail(ExitLocalPort, "local-port", "choose another with --metrics", "cannot serve metrics: %v", err)
	}
	return l, nil
}

// serveMetrics answers scrapes until ctx ends.
func (d *Daemon) serveMetrics(ctx context.Context, l net.Listener) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(newMetrics(d), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: scrapeTimeout}))
	d.log.Info("metrics are served", "at", "http://"+l.Addr().String()+"/metrics")
	return serveHTTP(ctx, l, hostIsLoopback(l.Addr(), mux))
}

// scrapeTimeout is Prometheus' own default.
const scrapeTimeout = 10 * time.Second

// serveHTTP serves until ctx ends, and returns when every request has.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{
		Handler:           h,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 10 * time.Second, // a local program's few lines
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		soon, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if s.Shutdown(soon) != nil {
			s.Close()
		}
	})
	err := s.Serve(l)
	if !stop() {
		<-ended
	}
	if errors.Is(err, http.ErrServerClosed) {
		return ctx.Err()
	}
	return err
}

// hostIsLoopback refuses requests for other hosts where addr is loopback's: a
// web page whose name was made to point here (DNS rebinding) sends its own. The
// port may be another: a forward's, at whose end we are.
func hostIsLoopback(addr net.Addr, h http.Handler) http.Handler {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || !tcp.IP.IsLoopback() {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil { // port 80
			host = strings.Trim(r.Host, "[]")
		}
		ip := net.ParseIP(host)
		if host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			http.Error(w, "this address is for 127.0.0.1 and localhost", http.StatusMisdirectedRequest)
			return
		}
		h.ServeHTTP(w, r)
	})
}
