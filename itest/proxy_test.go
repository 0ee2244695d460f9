//go:build linux

package itest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

// httpProxy is a proxy on a host of the lab that connects where it is asked to.
type httpProxy struct {
	mu    sync.Mutex
	asked map[string]int
	allow func(address string) bool
}

func serveProxy(t *testing.T, host *lab.Host, at string, allow func(string) bool) *httpProxy {
	l, err := host.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	p := &httpProxy{asked: map[string]int{}, allow: allow}
	var conns sync.WaitGroup
	open := map[net.Conn]bool{}
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		for c := range open {
			c.Close()
		}
		p.mu.Unlock()
		conns.Wait()
	})
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				in := bufio.NewReader(c)
				req, err := http.ReadRequest(in)
				if err != nil || req.Method != http.MethodConnect {
					return
				}
				p.mu.Lock()
				p.asked[req.Host]++
				p.mu.Unlock()
				if !p.allow(req.Host) {
					fmt.Fprint(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
					return
				}
				far, err := host.Dial(t.Context(), "tcp", req.Host)
				if err != nil {
					fmt.Fprint(c, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
					return
				}
				defer far.Close()
				p.mu.Lock()
				open[far], open[c] = true, true
				p.mu.Unlock()
				fmt.Fprint(c, "HTTP/1.1 200 Connection established\r\n\r\n")
				done := make(chan struct{})
				go func() { io.Copy(far, in); far.Close(); close(done) }()
				io.Copy(c, far)
				c.Close()
				<-done
			})
		}
	}()
	return p
}

func (p *httpProxy) connects(address string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[address]
}

// A network whose only way out is a proxy, which lets out TLS's port alone, as most do.
func TestNetworksBehindAnHTTPProxyWorkOverTheRelay(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	proxy := serveProxy(t, l.Public("proxy", "7.0.0.30"), "7.0.0.30:3128", func(address string) bool {
		_, port, _ := net.SplitHostPort(address)
		return port == "443"
	})
	closed := l.Home("b", lab.PortRestricted, slow())
	closed.OnlyTCP(3128)
	w := &world{t: t, lab: l}
	w.relay = fwdtest.New(t, l.Public("relay", "7.0.0.10"))
	w.relaying = w.relay.Start("relay", "--as", "relay", "--listen", "4001", "--listen", "443")
	w.relaying.Wait("relay")
	code := w.relaying.Wait("invite").Invite

	w.nas = fwdtest.New(t, l.Home("a", lab.PortRestricted, slow()).Host("nas"))
	w.nas.Join(code, "nas-box")
	w.laptop = fwdtest.New(t, closed.Host("laptop"))
	w.laptop.Env = []string{"ALL_PROXY=http://7.0.0.30:3128"}
	w.laptop.Join(w.relay.Invite(), "laptop")
	w.expose()
	connect, local := w.connect()
	r := w.transfer(local, load)
	pathIs(connect, "relay")
	if n := proxy.connects("7.0.0.10:443"); n == 0 {
		t.Errorf("in %v the proxy was never asked for the relay", r.Took)
	}
	if f := examine(t, w.laptop).find("proxy", ""); f.Level != "ok" {
		t.Errorf("%+v", f)
	}
}
