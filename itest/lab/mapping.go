//go:build linux

package lab

import (
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Mapping is a protocol by which hosts have their router open ports.
type Mapping int

const (
	PCP    Mapping = iota // RFC 6887, MAP and ANNOUNCE
	NATPMP                // RFC 6886
	UPnP                  // IGD 1: SSDP, a description and SOAP over HTTP
)

// Forward is a port that the router has opened.
type Forward struct {
	Proto    string // udp, tcp
	External uint16
	To       netip.AddrPort
}

// mapPorts begins to serve what the option MapsPorts promises.
func (h *Home) mapPorts(by []Mapping) {
	h.lab.t.Helper()
	m := &portMapper{router: &h.Router, open: map[forwardKey]forward{}, next: 30000}
	h.mapper = m
	var ends []func()
	var serving sync.WaitGroup
	listen := func(addr string) *net.UDPConn {
		var c net.PacketConn
		var err error
		h.node.visit(func() { c, err = net.ListenPacket("udp4", addr) })
		h.lab.must(err, "port mapping")
		ends = append(ends, func() { c.Close() })
		return c.(*net.UDPConn)
	}
	lan := h.lan.Addr().String()
	if slices.Contains(by, PCP) || slices.Contains(by, NATPMP) {
		c := listen(lan + ":5351")
		serving.Go(func() { m.packets(c, slices.Contains(by, PCP), slices.Contains(by, NATPMP)) })
	}
	if slices.Contains(by, UPnP) {
		var web net.Listener
		var search *net.UDPConn
		var err error
		h.node.visit(func() {
			var lan0 *net.Interface
			if lan0, err = net.InterfaceByName("lan0"); err != nil {
				return
			}
			if search, err = net.ListenMulticastUDP("udp4", lan0, &net.UDPAddr{IP: net.IPv4(239, 255, 255, 250), Port: 1900}); err != nil {
				return
			}
			web, err = net.Listen("tcp4", lan+":5000")
		})
		h.lab.must(err, "port mapping by UPnP")
		server := &http.Server{Handler: m.web()}
		ends = append(ends, func() { search.Close() }, func() { server.Close() })
		serving.Go(func() { m.search(search, "http://"+lan+":5000/root.xml") })
		serving.Go(func() { server.Serve(web) })
	}
	h.lab.t.Cleanup(func() {
		for _, end := range ends {
			end()
		}
		serving.Wait()
	})
}

// ForwardByHand has the router send a UDP port to one of a host inside, as people set it in a router's pages.
func (h *Home) ForwardByHand(port uint16, to *Host, inside uint16) {
	h.lab.t.Helper()
	m := h.mapper
	if m == nil {
		m = &portMapper{router: &h.Router, open: map[forwardKey]forward{}}
		h.mapper = m
	}
	_, err := m.set(unix.IPPROTO_UDP, port, netip.AddrPortFrom(to.Addr(), inside), "by hand")
	h.lab.must(err, "forward a port by hand")
}

// Forwards are the ports that the router has open on request, in order.
func (h *Home) Forwards() (out []Forward) {
	h.mapper.mu.Lock()
	defer h.mapper.mu.Unlock()
	for k, f := range h.mapper.open {
		out = append(out, Forward{map[byte]string{unix.IPPROTO_UDP: "udp", unix.IPPROTO_TCP: "tcp"}[k.proto], k.external, f.to})
	}
	slices.SortFunc(out, func(a, b Forward) int {
		return strings.Compare(a.Proto, b.Proto)*65536 + int(a.External) - int(b.External)
	})
	return out
}

// portMapper is what a router knows of the ports that it has opened. They do not expire: no test is so long.
type portMapper struct {
	router *Router
	mu     sync.Mutex
	open   map[forwardKey]forward
	next   uint16
}

type forwardKey struct {
	proto    byte
	external uint16
}

type forward struct {
	to    netip.AddrPort
	nonce string // PCP's
}

// set opens a port, and another than is asked for if port is 0.
func (m *portMapper) set(proto byte, port uint16, to netip.AddrPort, nonce string) (uint16, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, f := range m.open {
		if k.proto == proto && f.to == to {
			if f.nonce != nonce {
				return 0, errors.New("not yours")
			}
			if port == 0 || port == k.external {
				return k.external, nil
			}
		}
	}
	if port == 0 {
		m.next++
		port = m.next
	}
	m.open[forwardKey{proto, port}] = forward{to, nonce}
	return port, m.installLocked()
}

// clear closes the ports that lead to an inside port.
func (m *portMapper) clear(match func(forwardKey, forward) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, f := range m.open {
		if match(k, f) {
			delete(m.open, k)
		}
	}
	if err := m.installLocked(); err != nil {
		m.router.lab.t.Error(err)
	}
}

func (m *portMapper) installLocked() error {
	return m.router.node.install(nftables.TableFamilyIPv4, "forwards", func(r *ruleset) {
		before := r.chain(nftables.ChainTypeNAT, nftables.ChainHookPrerouting, atDNAT-1, accept)
		for k, f := range m.open {
			before.rule(in("wan"), l4(k.proto), dport(k.external), term{
				value(0, f.to.Addr().AsSlice()), value(1, binaryutil.BigEndian.PutUint16(f.to.Port())),
				&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg(0), RegProtoMin: reg(1)},
			})
		}
	})
}

// packets serves NAT-PMP and PCP until c is closed.
func (m *portMapper) packets(c *net.UDPConn, pcp, pmp bool) {
	b := make([]byte, 1500)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < 2 {
			continue
		}
		var answer []byte
		switch ip := from.Addr().Unmap(); {
		case b[0] == 2 && pcp:
			answer = m.pcp(b[:n], ip)
		case b[0] == 0 && pmp:
			answer = m.pmp(b[:n], ip)
		case pmp:
			answer = []byte{0, 0x80 | b[1], 0, 1, 0, 0, 0, 1} // unsupported version
		}
		if answer != nil {
			c.WriteToUDPAddrPort(answer, from)
		}
	}
}

// pmp answers a NAT-PMP request.
func (m *portMapper) pmp(b []byte, from netip.Addr) []byte {
	answer := []byte{0, 0x80 | b[1], 0, 0, 0, 0, 0, 1}
	switch {
	case b[1] == 0:
		return append(answer, m.router.wan.AsSlice()...)
	case len(b) < 12 || b[1] > 2:
		return nil
	}
	proto := map[byte]byte{1: unix.IPPROTO_UDP, 2: unix.IPPROTO_TCP}[b[1]]
	port, external := binary.BigEndian.Uint16(b[4:]), uint16(0)
	to := netip.AddrPortFrom(from, port)
	if life := binary.BigEndian.Uint32(b[8:]); life == 0 {
		m.clear(func(k forwardKey, f forward) bool { return k.proto == proto && f.to == to })
	} else {
		var err error
		if external, err = m.set(proto, 0, to, ""); err != nil {
			answer[3] = 4
		}
	}
	answer = binary.BigEndian.AppendUint16(answer, port)
	answer = binary.BigEndian.AppendUint16(answer, external)
	return append(answer, b[8:12]...)
}

// pcp answers a PCP request.
func (m *portMapper) pcp(b []byte, from netip.Addr) []byte {
	if len(b) < 24 {
		return nil
	}
	answer := slices.Clone(b)
	answer[1] |= 0x80
	copy(answer[8:24], []byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	refuse := func(result byte) []byte { answer[3] = result; return answer }
	if netip.AddrFrom16([16]byte(b[8:24])).Unmap() != from {
		return refuse(12)
	}
	switch {
	case b[1] == 0:
		return answer
	case b[1] != 1 || len(b) < 60:
		return refuse(4)
	}
	nonce, proto, to := string(b[24:36]), b[36], netip.AddrPortFrom(from, binary.BigEndian.Uint16(b[40:]))
	if binary.BigEndian.Uint32(b[4:]) == 0 {
		m.clear(func(k forwardKey, f forward) bool { return k.proto == proto && f.to == to && f.nonce == nonce })
		return answer
	}
	external, err := m.set(proto, 0, to, nonce)
	if err != nil {
		return refuse(2)
	}
	binary.BigEndian.PutUint16(answer[42:], external)
	wan := m.router.wan.As16()
	copy(answer[44:], wan[:])
	return answer
}

const (
	upnpRoot    = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
	upnpWAN     = "urn:schemas-upnp-org:device:WANDevice:1"
	upnpDevice  = "urn:schemas-upnp-org:device:WANConnectionDevice:1"
	upnpService = "urn:schemas-upnp-org:service:WANIPConnection:1"
)

// search answers SSDP until c is closed.
func (m *portMapper) search(c *net.UDPConn, location string) {
	b := make([]byte, 1500)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		for _, wanted := range []string{upnpRoot, upnpDevice, upnpService} {
			if err == nil && strings.HasPrefix(string(b[:n]), "M-SEARCH ") && strings.Contains(string(b[:n]), wanted) {
				fmt.Fprintf(writerTo{c, from}, "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: %s\r\nUSN: uuid:lab::%[1]s\r\nEXT:\r\nSERVER: lab\r\nLOCATION: %s\r\n\r\n", wanted, location)
			}
		}
	}
}

type writerTo struct {
	c  *net.UDPConn
	to netip.AddrPort
}

func (w writerTo) Write(b []byte) (int, error) { return w.c.WriteToUDPAddrPort(b, w.to) }

// web serves the device's description and its actions.
func (m *portMapper) web() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /root.xml", func(w http.ResponseWriter, _ *http.Request) {
		device := func(kind, inside string) string {
			return "<device><deviceType>" + kind + "</deviceType><friendlyName>lab</friendlyName><UDN>uuid:lab</UDN>" + inside + "</device>"
		}
		list := func(inside string) string { return "<deviceList>" + inside + "</deviceList>" }
		fmt.Fprint(w, `<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>0</minor></specVersion>`+
			device(upnpRoot, list(device(upnpWAN, list(device(upnpDevice, "<serviceList><service><serviceType>"+upnpService+
				"</serviceType><serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId><SCPDURL>/scpd.xml</SCPDURL><controlURL>/do</controlURL><eventSubURL>/events</eventSubURL></service></serviceList>")))))+
			`</root>`)
	})
	mux.HandleFunc("POST /do", func(w http.ResponseWriter, r *http.Request) {
		_, action, _ := strings.Cut(strings.Trim(r.Header.Get("SOAPAction"), `"`), "#")
		args, err := arguments(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		results, err := m.act(action, args)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintf(w, `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:%sResponse xmlns:u="%s">%s</u:%[1]sResponse></s:Body></s:Envelope>`,
			action, upnpService, results)
	})
	return mux
}

// act does one action and returns its results as XML.
func (m *portMapper) act(action string, args map[string]string) (string, error) {
	var external uint16
	fmt.Sscan(args["NewExternalPort"], &external)
	proto := map[string]byte{"UDP": unix.IPPROTO_UDP, "TCP": unix.IPPROTO_TCP}[args["NewProtocol"]]
	switch action {
	case "GetNATRSIPStatus":
		return "<NewRSIPAvailable>0</NewRSIPAvailable><NewNATEnabled>1</NewNATEnabled>", nil
	case "GetExternalIPAddress":
		return "<NewExternalIPAddress>" + m.router.wan.String() + "</NewExternalIPAddress>", nil
	case "AddPortMapping":
		to, err := netip.ParseAddrPort(args["NewInternalClient"] + ":" + args["NewInternalPort"])
		if err != nil {
			return "", err
		}
		_, err = m.set(proto, external, to, "")
		return "", err
	case "DeletePortMapping":
		m.clear(func(k forwardKey, _ forward) bool { return k == forwardKey{proto, external} })
		return "", nil
	}
	return "", fmt.Errorf("no action %q", action)
}

// arguments are the texts of a SOAP request's innermost elements.
func arguments(r io.Reader) (map[string]string, error) {
	args := make(map[string]string)
	name := ""
	for d := xml.NewDecoder(r); ; {
		token, err := d.Token()
		switch {
		case errors.Is(err, io.EOF):
			return args, nil
		case err != nil:
			return nil, err
		}
		switch t := token.(type) {
		case xml.StartElement:
			name = t.Name.Local
		case xml.CharData:
			if name != "" {
				args[name] += string(t)
			}
		case xml.EndElement:
			name = ""
		}
	}
}
