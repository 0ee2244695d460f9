package node

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
)

func TestRelayIsReachedOverWebSocketWhereNothingElseIsAnnounced(t *testing.T) {
	m := newMesh(t)
	relay, _ := m.relay(Config{Listen: append(loopback(), ma.StringCast("/ip4/127.0.0.1/tcp/0/tls/ws"))})
	m.onlyAt("wss")
	a, b := m.join(Config{}), m.join(Config{})
	for _, n := range []*Node{a, b} {
		eventually(t, "reserved over WebSocket", reserved(n, 1))
		if p, ok := n.Path(relay.self); !ok || p.Transport != "wss" {
			t.Errorf("the path to the relay: %+v", p)
		}
	}
	serveEcho(b)
	if _, err := echo(t, a, b.self, Relay); err != nil {
		t.Errorf("echo over a relay that both reach by WebSocket: %v", err)
	}
	if r := a.NAT(); len(r.Observed) > 0 {
		t.Errorf("a WebSocket connection shows where ports are mapped: %v", r.Observed)
	}
}

func TestWebSocketCarriesBulkBothWays(t *testing.T) {
	m := newMesh(t)
	relay, _ := m.relay(Config{Listen: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/0/tls/ws")}})
	a := m.join(Config{})
	const bulk protocol.ID = "/test/bulk/1"
	relay.Host().SetStreamHandler(bulk, func(s network.Stream) { io.Copy(s, s); s.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := a.Open(ctx, relay.self, bulk, nil, Auto)
	if err != nil {
		t.Fatal(err)
	}
	sent := make([]byte, 3<<20)
	rand.Read(sent)
	go func() { s.Write(sent); s.CloseWrite() }() // ends with the stream
	got, err := io.ReadAll(s)
	if err != nil || !slices.Equal(got, sent) {
		t.Errorf("%d bytes sent, %d came back: %v", len(sent), len(got), err)
	}
}

func TestRelayIsReachedThroughAProxy(t *testing.T) {
	for _, transport := range []string{"tcp", "wss"} {
		t.Run(transport, func(t *testing.T) {
			m := newMesh(t)
			relay, _ := m.relay(Config{Listen: append(loopback(), ma.StringCast("/ip4/127.0.0.1/tcp/0/tls/ws"))})
			m.onlyAt(transport)
			// What the roster says leads nowhere by itself: port 1 is closed. Only the proxy knows better.
			real := m.hide()
			proxy := newConnectProxy(t, "user:secret", real)
			a := m.join(Config{Proxy: func(address string) *url.URL { return proxy.url }})
			eventually(t, "reserved through the proxy", reserved(a, 1))
			if p, ok := a.Path(relay.self); !ok || p.Transport != transport || !strings.Contains(p.Remote.String(), "/tcp/1") {
				t.Errorf("the path to the relay: %+v", p)
			}
			if r := a.NAT(); len(r.Observed) > 0 {
				t.Errorf("a connection through a proxy shows where ports are mapped: %v", r.Observed)
			}
		})
	}
}

func TestAProxyIsNotUsedWhereTheDirectWayWorks(t *testing.T) {
	m := newMesh(t)
	relay, _ := m.relay(Config{})
	m.onlyAt("tcp")
	proxy := newConnectProxy(t, "", "127.0.0.1:1")
	a := m.join(Config{Proxy: func(string) *url.URL { return proxy.url }})
	eventually(t, "reserved", reserved(a, 1))
	b := m.join(Config{})
	if err := a.dialDirect(t.Context(), b.self, b.ListenAddrs()[1]); err != nil {
		t.Error(err)
	}
	if asked := proxy.asked(); len(asked) > 0 {
		t.Errorf("the proxy was asked for %v", asked)
	}
	// Members other than relays are never reached through it, strangers (an invite's contact) are.
	if a.proxyFor(b.self, "7.0.0.1:1") != nil || a.proxyFor(relay.self, "7.0.0.1:1") == nil || a.proxyFor(peer.ID("x"), "7.0.0.1:1") == nil {
		t.Error("who is dialled through a proxy")
	}
}

func TestAProxysRefusalIsTold(t *testing.T) {
	proxy := newConnectProxy(t, "user:secret", "127.0.0.1:1")
	wrong := *proxy.url
	wrong.User = url.UserPassword("user", "guess")
	_, err := connectThrough(t.Context(), &wrong, "relay.example.org:443")
	if err == nil || !strings.Contains(err.Error(), "407") {
		t.Errorf("a wrong password: %v", err)
	}
	for _, bad := range []string{"socks5://127.0.0.1:1080", "ftp://x"} {
		u, _ := url.Parse(bad)
		if _, err := connectThrough(t.Context(), u, "relay.example.org:443"); err == nil || !strings.Contains(err.Error(), "not known") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// onlyAt leaves of the relays' addresses those of one transport.
func (m *mesh) onlyAt(transport string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, r := range m.relays {
		m.relays[i].Addrs = slices.DeleteFunc(slices.Clone(r.Addrs), func(a ma.Multiaddr) bool { return transportOf(a) != transport })
	}
}

// hide gives the only relay's only address another port, and returns where it really is.
func (m *mesh) hide() (address string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := m.relays[0].Addrs[0]
	m.relays[0].Addrs[0] = ma.StringCast(strings.Replace(a.String(), "/tcp/"+portOf(a), "/tcp/1", 1))
	return net.JoinHostPort(hostOf(a), portOf(a))
}

// connectProxy is an HTTP proxy that connects to one address, whatever it is asked for.
type connectProxy struct {
	url   *url.URL
	mu    sync.Mutex
	hosts []string
}

func newConnectProxy(t *testing.T, user, to string) *connectProxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &connectProxy{url: &url.URL{Scheme: "http", Host: l.Addr().String()}}
	if name, password, ok := strings.Cut(user, ":"); ok {
		p.url.User = url.UserPassword(name, password)
	}
	var conns sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); l.Close(); conns.Wait() })
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { p.serve(ctx, c, to) })
		}
	})
	return p
}

func (p *connectProxy) serve(ctx context.Context, c net.Conn, to string) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	in := bufio.NewReader(c)
	req, err := http.ReadRequest(in)
	if err != nil || req.Method != http.MethodConnect {
		return
	}
	p.mu.Lock()
	p.hosts = append(p.hosts, req.Host)
	p.mu.Unlock()
	if u := p.url.User; u != nil {
		password, _ := u.Password()
		check := &http.Request{Header: http.Header{"Authorization": req.Header["Proxy-Authorization"]}}
		if name, given, _ := check.BasicAuth(); name != u.Username() || given != password {
			fmt.Fprint(c, "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
			return
		}
	}
	far, err := net.Dial("tcp", to)
	if err != nil {
		fmt.Fprint(c, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		return
	}
	defer far.Close()
	defer context.AfterFunc(ctx, func() { far.Close() })()
	fmt.Fprint(c, "HTTP/1.1 200 Connection established\r\n\r\n")
	done := make(chan struct{})
	go func() { io.Copy(far, in); far.Close(); close(done) }()
	io.Copy(c, far)
	c.Close()
	<-done
}

func (p *connectProxy) asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.hosts)
}
