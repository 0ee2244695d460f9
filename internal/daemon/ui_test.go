package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

const pageToken = "abcdefghijklmnopqrstuvwxyz"

// newPage is a small network, and the page of the machine that exposes "nas" in it.
func newPage(t *testing.T, manage bool) (address string, vps, laptop *machine) {
	t.Helper()
	vps, first := newRelay(t)
	laptop = newMachine(t)
	laptop.must(JoinRequest{Invite: first, As: "laptop"})
	vps.hold(ExposeRequest{Target: reverser(t), Name: "nas"}, "exposed")
	laptop.hold(ConnectRequest{Name: "nas", Local: "127.0.0.1:0"}, "path")
	e, _ := vps.hold(PageRequest{Token: pageToken, Manage: manage}, "page")
	return e.URL, vps, laptop
}

// ask makes a request and returns status and body; change may be nil.
func ask(t *testing.T, method, address string, form url.Values, change func(*http.Request)) (int, string) {
	t.Helper()
	r, err := http.NewRequest(method, address, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if change != nil {
		change(r)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, _ := io.ReadAll(answer.Body)
	return answer.StatusCode, string(body)
}

func TestThePageShowsTheNetwork(t *testing.T) {
	address, _, _ := newPage(t, false)
	code, page := ask(t, "GET", address, nil, nil)
	if code != 200 {
		t.Fatal(code, page)
	}
	for _, want := range []string{"<h1>vps</h1>", "owner of <b>home</b>", "<b>nas</b>", "laptop directly at", `class="peer direct"`, "<th>invite"} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in the page", want)
		}
	}
	if strings.Contains(page, "<form") || strings.Contains(page, "fwd1") {
		t.Error("a page that only shows has forms, or an invite's code")
	}
	if outside := regexp.MustCompile(`(?:src|href|action)="(?:https?:)?//[^"]*`).FindString(page); outside != "" {
		t.Errorf("it asks others for %s", outside)
	}
	for _, file := range []string{"style.css", "live.js"} {
		if code, body := ask(t, "GET", address+file, nil, nil); code != 200 || body == "" {
			t.Errorf("%s: %d", file, code)
		}
	}
}

func TestThePageIsForWhoKnowsItsAddress(t *testing.T) {
	address, _, _ := newPage(t, false)
	base := strings.TrimSuffix(address, pageToken+"/")
	for _, path := range []string{"", "live", "zyxwvutsrqponmlkjihgfedcba/", "zyxwvutsrqponmlkjihgfedcba/live", pageToken[:25] + "/", pageToken + "/../style.css", "style.css", pageToken + "/nothing"} {
		if code, body := ask(t, "GET", base+path, nil, nil); code == 200 || strings.Contains(body, "laptop") {
			t.Errorf("%q: %d %s", path, code, body)
		}
	}
	// A page of another site that had its name resolve to loopback.
	if code, body := ask(t, "GET", address, nil, func(r *http.Request) { r.Host = "evil.example:" + r.URL.Port() }); code != http.StatusMisdirectedRequest || strings.Contains(body, "laptop") {
		t.Errorf("another host: %d", code)
	}
	if code, _ := ask(t, "POST", address+"do", url.Values{"do": {"revoke"}}, nil); code == 200 || code == http.StatusSeeOther {
		t.Errorf("a form where only showing was asked for: %d", code)
	}
}

func TestLivePartsAreSentWhenTheyChange(t *testing.T) {
	address, vps, _ := newPage(t, false)
	answer, err := http.Get(address + "live")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	parts := make(chan map[string]string, 64)
	go func() { // ends with the answer
		lines := bufio.NewScanner(answer.Body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var part map[string]string
				json.Unmarshal([]byte(data), &part)
				parts <- part
			}
		}
	}()
	seen := map[string]bool{"note": true} // there is none
	for len(seen) < len(pageParts) {
		seen[await(t, parts, "all parts once")["id"]] = true
	}
	vps.hold(ExposeRequest{Target: "1234", Name: "another"}, "exposed")
	for {
		if p := await(t, parts, "the new service"); p["id"] == "services" && strings.Contains(p["html"], "another") {
			return
		}
	}
}

func TestFormsOfTheManagedPageAreCarriedOutAndNoOthers(t *testing.T) {
	address, vps, _ := newPage(t, true)
	_, page := ask(t, "GET", address, nil, nil)
	secret := regexp.MustCompile(`name="form" value="(\w+)"`).FindStringSubmatch(page)
	if secret == nil {
		t.Fatal("no form")
	}
	deny := url.Values{"form": secret[1:], "do": {"deny"}, "service": {"nas"}, "who": {"laptop"}}
	without := url.Values{"do": {"deny"}, "service": {"nas"}, "who": {"laptop"}}
	for name, c := range map[string]struct {
		form   url.Values
		change func(*http.Request)
	}{
		"no secret":    {without, nil},
		"another site": {deny, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }},
		"its origin":   {deny, func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") }},
		"another host": {deny, func(r *http.Request) { r.Host = "evil.example" }},
	} {
		if code, _ := ask(t, "POST", address+"do", c.form, c.change); code < 400 {
			t.Errorf("%s: %d", name, code)
		}
	}
	if _, page = ask(t, "GET", address, nil, nil); strings.Contains(page, "deny: nas laptop") {
		t.Fatal("it was carried out")
	}
	if code, page := ask(t, "POST", address+"do", deny, nil); code != 200 || !strings.Contains(page, "deny: nas laptop") {
		t.Errorf("deny: %d", code)
	}
	expose := url.Values{"form": secret[1:], "do": {"expose"}, "target": {"127.0.0.1:8080"}, "service": {"web"}}
	if code, page := ask(t, "POST", address+"do", expose, nil); code != 200 || !strings.Contains(page, "<b>web</b>") {
		t.Errorf("expose: %d", code)
	}
	// One name for TCP and UDP: who may is one list, and each ends alone.
	both := url.Values{"form": secret[1:], "do": {"expose"}, "target": {"127.0.0.1:5353/udp"}, "service": {"web"}}
	if code, page := ask(t, "POST", address+"do", both, nil); code != 200 || !strings.Contains(page, "127.0.0.1:5353/udp") || !strings.Contains(page, "change web/udp") {
		t.Errorf("expose for UDP: %d", code)
	}
	targets := func() (list []string) {
		for _, s := range vps.status().Services {
			if s.Name == "web" {
				list = append(list, s.Target)
			}
		}
		return list
	}
	end := url.Values{"form": secret[1:], "do": {"unexpose"}, "service": {"web"}, "kind": {"tcp"}}
	if code, _ := ask(t, "POST", address+"do", end, nil); code != 200 {
		t.Errorf("unexpose of TCP: %d", code)
	}
	eventually(t, "TCP alone has ended", func() bool { return slices.Equal(targets(), []string{"127.0.0.1:5353/udp"}) })
	end.Set("kind", "udp")
	if code, _ := ask(t, "POST", address+"do", end, nil); code != 200 {
		t.Errorf("unexpose of UDP: %d", code)
	}
	eventually(t, "UDP has ended", func() bool { return len(targets()) == 0 })
	expose.Set("target", "<script>alert(1)</script>")
	if _, page := ask(t, "POST", address+"do", expose, nil); !strings.Contains(page, `class="note bad"`) || strings.Contains(page, "<script>alert") {
		t.Error("a wrong target is not told, or told as markup")
	}
	revoke := url.Values{"form": secret[1:], "do": {"revoke"}, "peer": {"laptop"}}
	if code, _ := ask(t, "POST", address+"do", revoke, nil); code != 200 {
		t.Errorf("revoke: %d", code)
	}
	for _, e := range vps.must(PeersRequest{}) {
		if strings.Contains(string(e.Result), `"laptop"`) {
			t.Error("laptop is still there")
		}
	}
}

func TestMapsAndChartsHoldWhatTheyAreGiven(t *testing.T) {
	s := &Status{Name: "laptop", Relays: []RelayStatus{{Peer: "R", Name: "vps", Connected: true, RTT: 38}}}
	peers := []PeerEntry{{Name: "laptop", Self: true}, {Name: "vps", Peer: "R"},
		{Name: "a", Peer: "A", Path: &Path{Kind: "direct", Transport: "tcp"}},
		{Name: strings.Repeat("long", 16), Peer: "B", Path: &Path{Kind: "relay", Relay: "vps", Reason: "both NATs change ports"}}}
	for range 40 {
		peers = append(peers, PeerEntry{Name: "away", Peer: "C"})
	}
	m := drawMap(s, peers, narrowMap)
	if len(m.Dots) != 1+1+mapPeers || m.More != 42-mapPeers {
		t.Errorf("%d dots, %d more", len(m.Dots), m.More)
	}
	if m.Dots[1].Class != "peer relayed" || len([]rune(m.Dots[1].Name)) > narrowMap.name || m.Dots[2].Class != "peer direct" {
		t.Errorf("%+v", m.Dots[1:3])
	}
	if len(m.Lines) != 3 || !strings.Contains(m.Lines[1].Title, "both NATs change ports") || strings.Count(m.Lines[1].Path, "M") != 2 {
		t.Errorf("lines: %+v", m.Lines)
	}
	if c := chart(nil); c.Sent != "" || c.Top != "1 KiB/s" {
		t.Errorf("%+v", c)
	}
	if c := chart([]Rate{{Sent: 3 << 20}, {Received: 12345}}); c.Top != "5 MiB/s" || !strings.HasSuffix(c.Sent, " L299 100 Z") || c.Now.Received != 12345 {
		t.Errorf("%+v", c)
	}
	for n, want := range map[int64]int64{1: 1, 1024: 1024, 1500: 2048, 600 << 10: 1 << 20, 1 << 40: 1 << 40} {
		if got := niceBytes(n); got != want {
			t.Errorf("%d: %d, want %d", n, got, want)
		}
	}
}

// TestThePageInABrowser: the script runs under the page's own policy and puts in place what changed. Chromium prints
// the page once all of it is loaded, so a picture is added on the way to it, which comes once another script, added too, has
// seen the change in its place.
func TestThePageInABrowser(t *testing.T) {
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("no chromium here: apt-get install chromium")
	}
	address, vps, _ := newPage(t, false)
	target, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	live, followed := make(chan struct{}), make(chan struct{})
	begun, seen := sync.OnceFunc(func() { close(live) }), sync.OnceFunc(func() { close(followed) })
	way := &httputil.ReverseProxy{
		FlushInterval: -1,
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: target.Host}) },
		ModifyResponse: func(r *http.Response) error {
			switch kind := r.Header.Get("Content-Type"); {
			case strings.HasPrefix(kind, "text/html"):
				page, err := io.ReadAll(r.Body)
				page = bytes.Replace(page, []byte("</html>"), []byte(`<script src="look.js"></script><img src="last.png"></html>`), 1)
				r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(page)), int64(len(page))
				r.Header.Del("Content-Length")
				return err
			case kind == "text/event-stream":
				begun()
			}
			return nil
		},
	}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path.Base(r.URL.Path) {
		case "look.js":
			w.Header().Set("Content-Type", "text/javascript")
			io.WriteString(w, `const look = () => { if (document.body.textContent.includes("renamed-meanwhile")) fetch("seen"); };
				new MutationObserver(look).observe(document.body, {subtree: true, childList: true});`)
		case "seen":
			seen()
		case "last.png":
			select {
			case <-followed:
			case <-r.Context().Done():
			}
		default:
			way.ServeHTTP(w, r)
		}
	}))
	defer front.Close()
	go func() {
		select {
		case <-live: // what is renamed now comes by the script alone
			vps.call(RenameRequest{Peer: "laptop", Name: "renamed-meanwhile"})
		case <-t.Context().Done():
		}
	}()
	profile := filepath.Join(shortTemp(t), "p")
	defer os.RemoveAll(profile)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--user-data-dir="+profile, "--enable-logging=stderr", fmt.Sprintf("--timeout=%d", patience.Milliseconds()), "--dump-dom",
		front.URL+target.Path)
	var told strings.Builder
	cmd.Stderr = &told
	page, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, told.String())
	}
	if !strings.Contains(string(page), "renamed-meanwhile") {
		t.Errorf("the page did not follow:\n%s", page)
	}
	if strings.Contains(told.String(), "Content Security Policy") {
		t.Errorf("the browser complains:\n%s", told.String())
	}
}
