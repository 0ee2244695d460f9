package daemon

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// newMeteredRelay is newRelay with metrics, whose address it returns.
func newMeteredRelay(t *testing.T) (m *machine, invite, metrics string) {
	t.Helper()
	m = &machine{t, Home{State: shortTemp(t)}}
	port, scrape := freePort(t), freePort(t)
	code := make(chan string, 1)
	m.run(func(ctx context.Context) error {
		request := RelayRequest{Listen: []string{"127.0.0.1:" + port}, Announce: []string{"127.0.0.1:" + port}, Name: "vps", Metrics: scrape}
		return Run(ctx, m.home, request, func(e Event) {
			if e.Event == "invite" {
				code <- e.Invite
			}
		})
	})
	return m, await(t, code, "the relay's invite"), "127.0.0.1:" + scrape
}

func scrape(t *testing.T, addr string) map[string]*dto.MetricFamily {
	t.Helper()
	answer, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(answer.Body)
	if err != nil {
		t.Fatalf("the scrape does not parse: %v", err)
	}
	return families
}

// value is the sum of the series that have all these labels.
func value(f *dto.MetricFamily, labels ...string) (sum float64) {
series:
	for _, m := range f.GetMetric() {
		for i := 0; i < len(labels); i += 2 {
			found := false
			for _, l := range m.GetLabel() {
				found = found || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
			}
			if !found {
				continue series
			}
		}
		sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
	}
	return sum
}

func TestAScrapeTellsWhatTheRelayAndItsSessionsDo(t *testing.T) {
	vps, first, addr := newMeteredRelay(t)
	laptop := newMachine(t)
	laptop.must(JoinRequest{Invite: first, As: "laptop"})
	vps.hold(ExposeRequest{Target: reverser(t), Name: "nas"}, "exposed")
	listening, _ := laptop.hold(ConnectRequest{Name: "nas", Local: "127.0.0.1:0"}, "listening")
	c, err := net.Dial("tcp", listening.Local)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "hello")
	c.(*net.TCPConn).CloseWrite()
	if got, _ := io.ReadAll(c); string(got) != "olleh" {
		t.Fatalf("%q", got)
	}
	c.Close()
	var families map[string]*dto.MetricFamily
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		families = scrape(t, addr)
		if value(families["fwd_relaying_reservations"]) == 1 || time.Now().After(deadline) {
			break // laptop reserves when it finds the time
		}
	}
	for name, want := range map[string]float64{
		"fwd_services": 1, "fwd_roster_epoch": float64(vps.status().Network.Epoch), "fwd_roster_peers": 2,
		"fwd_relaying_reservations": 1,
	} {
		if got := value(families[name]); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if got := value(families["fwd_session_bytes_total"], "role", "exit", "service", "nas", "direction", "received"); got != 5 {
		t.Errorf("received %v bytes", got)
	}
	if got := value(families["fwd_sessions_opened_total"], "service", "nas"); got != 1 {
		t.Errorf("%v sessions opened", got)
	}
	if got := value(families["fwd_paths"], "kind", "direct"); got != 1 {
		t.Errorf("%v direct paths", got)
	}
	if families["go_goroutines"] == nil {
		t.Error("nothing of the process")
	}
}

// A web page cannot read the metrics by having its own name point to loopback.
func TestMetricsOnLoopbackAnswerNoOtherHost(t *testing.T) {
	_, _, addr := newMeteredRelay(t)
	for host, want := range map[string]int{
		addr: 200, "localhost" + addr[strings.IndexByte(addr, ':'):]: 200,
		"localhost:1": 200, "[::1]:1": 200, // a forward's port
		"localhost": 200, "127.0.0.1": 200, "[::1]": 200, // port 80
		"evil.example" + addr[strings.IndexByte(addr, ':'):]: 421, "evil.example": 421, "localhost.evil.example": 421, "192.0.2.1:80": 421, ":1": 421,
	} {
		request, _ := http.NewRequest("GET", "http://"+addr+"/metrics", nil)
		request.Host = host
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("host %q: %d, want %d", host, answer.StatusCode, want)
		}
	}
}

func TestMetricsAddressIsLoopbackUnlessAskedOtherwise(t *testing.T) {
	for word, want := range map[string]string{"9464": "127.0.0.1:9464", ":9464": "127.0.0.1:9464", "0.0.0.0:9464": "0.0.0.0:9464", "[::1]:1": "[::1]:1", "vps:80": "vps:80"} {
		if got, err := metricsAddr(word); err != nil || got != want {
			t.Errorf("%q: %q, %v", word, got, err)
		}
	}
	for _, word := range []string{"", "x", "70000", "host", "host:", "1.2.3.4:http", "-1"} {
		if got, err := metricsAddr(word); err == nil {
			t.Errorf("%q is taken for %q", word, got)
		}
	}
}

// docs/grafana.json asks only for what there is.
func TestDashboardAsksForMetricsThatExist(t *testing.T) {
	data, err := os.ReadFile("../../docs/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(data, &dashboard); err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	descs := make(chan *prometheus.Desc, 100)
	newMetrics(nil).Describe(descs)
	close(descs)
	quoted := regexp.MustCompile(`fqName: "(\w+)"`)
	for desc := range descs {
		have[quoted.FindStringSubmatch(desc.String())[1]] = true
	}
	asked := 0
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			for _, name := range regexp.MustCompile(`\bfwd_\w+`).FindAllString(target.Expr, -1) {
				asked++
				if !have[name] {
					t.Errorf("panel %q asks for %s", p.Title, name)
				}
			}
		}
	}
	if asked < 15 {
		t.Errorf("only %d questions", asked)
	}
}
