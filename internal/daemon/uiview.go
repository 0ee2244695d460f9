package daemon

import (
	"cmp"
	"fmt"
	"html/template"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What the page shows: everything is laid out here, from one snapshot, and the
// templates only write it down.

type pageView struct {
	Status  Status
	Peers   []PeerEntry
	Invites []InviteEntry
	Owner   string // who has the invites, where this machine has not
	Maps    []mapView
	Chart   chartView
	Manage  bool
	Kept    bool // what is exposed here outlives the page
	Form    string
	Note    note
}

func (u *ui) view() pageView {
	d := u.d
	v := pageView{Status: d.status(), Peers: d.peerList(), Chart: chart(d.traffic.status(samples).Recent), Manage: u.manage, Kept: d.up != nil, Form: u.form}
	u.mu.Lock()
	v.Note = u.note
	u.mu.Unlock()
	for _, shape := range []mapShape{wideMap, narrowMap} {
		v.Maps = append(v.Maps, drawMap(&v.Status, v.Peers, shape))
	}
	if owner := d.currentOwner(); owner != nil {
		v.Invites = d.inviteList(owner)
	} else if roster := d.book.Current(); roster != nil {
		v.Owner = d.nameOf(roster.Owner)
	}
	return v
}

// A mapShape says where the columns of a map stand, in SVG units.
type mapShape struct {
	class                          string
	width, self, relay, peer, name int // name: runes that a label has room for
}

var (
	wideMap   = mapShape{"wide", 760, 90, 300, 500, 26}
	narrowMap = mapShape{"narrow", 360, 46, 138, 216, 17}
)

const (
	mapRow   = 54 // SVG units between peers: a dot and two lines of text
	mapPeers = 24 // drawn at most; the list below has all
)

// A mapView is this machine on the left, the relays in the middle, the others
// on the right, and between them the ways that are up.
type mapView struct {
	Class         string
	Width, Height int
	Lines         []mapLine
	Dots          []mapDot
	More          int // peers that are not drawn
	MoreY         int
}

type mapLine struct{ Class, Path, Title string }

type mapDot struct {
	Class, Name, About string
	X, Y, R            int
	LabelX, LabelY     int
	Anchor             string
}

// drawMap lays the map out: relayed machines above, beside the relays, then the
// direct ones, then those that are away.
func drawMap(s *Status, peers []PeerEntry, shape mapShape) mapView {
	relays := map[string]bool{}
	for _, r := range s.Relays {
		relays[r.Peer] = true
	}
	others := slices.DeleteFunc(slices.Clone(peers), func(p PeerEntry) bool { return p.Self || relays[p.Peer] })
	rates := map[string]Rate{}
	for _, used := range s.Paths {
		rates[used.Peer] = used.Rate
		for i := range others {
			if others[i].Peer == used.Peer {
				others[i].Path = used.Path // by the kind that a forward asks for
			}
		}
	}
	order := func(p PeerEntry) int {
		switch {
		case p.Path == nil:
			return 2
		case p.Path.Kind == "relay":
			return 0
		}
		return 1
	}
	slices.SortStableFunc(others, func(a, b PeerEntry) int {
		return cmp.Or(cmp.Compare(order(a), order(b)), cmp.Compare(a.Name, b.Name))
	})
	m := mapView{Class: shape.class, Width: shape.width}
	if len(others) > mapPeers {
		m.More = len(others) - mapPeers
		others = others[:mapPeers]
	}
	const top = 52 // a relay's two lines of label stand above it, clear of the ways below
	rows := max(len(others), len(s.Relays)*2, 2)
	m.Height = top + rows*mapRow
	m.MoreY = m.Height + 4
	if m.More > 0 {
		m.Height += 24
	}
	selfY := top + (rows-1)*mapRow/2
	at := map[string]mapDot{} // relays by name
	for i, r := range s.Relays {
		class, about := "relay", milliWords(r.RTT)
		if !r.Connected {
			class, about = "relay away", "not reached"
		}
		dot := mapDot{Class: class, Name: clip(r.Name, shape.name/2), About: about, X: shape.relay, Y: top + i*2*mapRow, R: 9, Anchor: "middle"}
		dot.LabelX, dot.LabelY = dot.X, dot.Y-33
		at[r.Name] = dot
		if r.Connected {
			m.Lines = append(m.Lines, mapLine{"link", curve(shape.self, selfY, dot.X, dot.Y), "connected with the relay " + r.Name})
		}
		m.Dots = append(m.Dots, dot)
	}
	for i, p := range others {
		y := top + i*mapRow
		dot := mapDot{Class: "peer away", Name: clip(p.Name, shape.name), About: "not connected", X: shape.peer, Y: y, R: 7, LabelX: shape.peer + 16, LabelY: y - 1, Anchor: "start"}
		if p.Path != nil {
			busy := ""
			if r := rates[p.Peer]; r != (Rate{}) {
				busy = " busy"
			}
			dot.About = strings.TrimSpace(p.Path.Transport + " " + milliWords(p.Path.RTT))
			dot.Class = "peer direct"
			if p.Path.Kind == "relay" {
				dot.Class = "peer relayed"
				dot.About = strings.TrimSpace("via " + clip(p.Path.Relay, shape.name-8) + " " + milliWords(p.Path.RTT))
				way := curve(shape.self, selfY, dot.X, y)
				if via, ok := at[p.Path.Relay]; ok {
					way = curve(shape.self, selfY, via.X, via.Y) + " " + curve(via.X, via.Y, dot.X, y)
				}
				m.Lines = append(m.Lines, mapLine{"relayed" + busy, way, p.Name + " via relay " + p.Path.Relay + because(p.Path.Reason)})
			} else {
				m.Lines = append(m.Lines, mapLine{"direct" + busy, curve(shape.self, selfY, dot.X, y), p.Name + " directly at " + p.Path.Remote})
			}
		}
		m.Dots = append(m.Dots, dot)
	}
	about := "this machine"
	if s.Relaying != nil {
		about = "this machine, a relay"
	}
	m.Dots = append(m.Dots, mapDot{Class: "self", Name: clip(cmp.Or(s.Name, "no network"), shape.name/2), About: about,
		X: shape.self, Y: selfY, R: 12, LabelX: shape.self, LabelY: selfY + 30, Anchor: "middle"})
	return m
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// curve leaves and arrives level.
func curve(x1, y1, x2, y2 int) string {
	mid := (x1 + x2) / 2
	return fmt.Sprintf("M%d %d C%d %d %d %d %d %d", x1, y1, mid, y1, mid, y2, x2, y2)
}

// clip shortens a name to n runes.
func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:max(1, n-1)]) + "…"
	}
	return s
}

// A chartView is the throughput of the last minutes: each direction an area of
// the same scale.
type chartView struct {
	Sent, Received string // SVG paths, closed
	Now            Rate
	Top            string // what the upper edge means
	Since          string // what the left edge means
}

const (
	chartWidth  = samples
	chartHeight = 100
)

func chart(list []Rate) chartView {
	v := chartView{Top: "1 KiB/s", Since: "5 min ago"}
	most := int64(1 << 10)
	for _, r := range list {
		most = max(most, r.Sent, r.Received)
	}
	scale := niceBytes(most)
	v.Top = byteWords(scale) + "/s"
	area := func(pick func(Rate) int64) string {
		var b strings.Builder
		x := chartWidth - len(list)
		fmt.Fprintf(&b, "M%d %d", x, chartHeight)
		for i, r := range list {
			y := chartHeight - float64(pick(r))/float64(scale)*(chartHeight-2)
			fmt.Fprintf(&b, " L%d %s", x+i, strconv.FormatFloat(y, 'f', 1, 64))
		}
		fmt.Fprintf(&b, " L%d %d Z", chartWidth-1, chartHeight)
		return b.String()
	}
	if len(list) > 0 {
		v.Now = list[len(list)-1]
		v.Sent = area(func(r Rate) int64 { return r.Sent })
		v.Received = area(func(r Rate) int64 { return r.Received })
	}
	return v
}

// niceBytes is the next of 1, 2, 5, 10, … of a binary unit.
func niceBytes(n int64) int64 {
	unit := math.Pow(1024, math.Floor(math.Log(float64(n))/math.Log(1024)))
	for _, f := range []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1024} {
		if f*unit >= float64(n) {
			return int64(f * unit)
		}
	}
	return n
}

// byteWords prints a number of bytes in binary units.
func byteWords(n int64) string {
	if n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	v, units := float64(n), "KMGTPE"
	i := -1
	for v >= 1024 && i < len(units)-1 {
		v /= 1024
		i++
	}
	digits := 1
	if v >= 100 || v == math.Trunc(v) {
		digits = 0
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + " " + units[i:i+1] + "iB"
}

func milliWords(ms float64) string {
	switch {
	case ms <= 0:
		return ""
	case ms < 10:
		return strconv.FormatFloat(ms, 'f', 1, 64) + " ms"
	}
	return strconv.FormatFloat(ms, 'f', 0, 64) + " ms"
}

var pageFuncs = template.FuncMap{
	"udp":    func(target string) bool { return strings.HasSuffix(target, udpSuffix) },
	"bytes":  byteWords,
	"millis": milliWords,
	"rate": func(n int64) string {
		if n == 0 {
			return "–"
		}
		return byteWords(n) + "/s"
	},
	"rates": func(r Rate) string {
		var parts []string
		if r.Sent > 0 {
			parts = append(parts, "↑ "+byteWords(r.Sent)+"/s")
		}
		if r.Received > 0 {
			parts = append(parts, "↓ "+byteWords(r.Received)+"/s")
		}
		return cmp.Or(strings.Join(parts, " "), "–")
	},
	"nat": func(n NATStatus) string {
		parts := []string{n.Reachability}
		for _, p := range [][2]string{{"UDP", n.UDP}, {"TCP", n.TCP}, {"port mapping", n.PortMapping}} {
			if p[1] != "" && p[1] != "unknown" {
				parts = append(parts, p[0]+" "+p[1])
			}
		}
		return strings.Join(parts, ", ")
	},
	"words": func(list []string) string { return strings.Join(list, ", ") },
	"short": func(id string) string { return id[:min(8, len(id))] },
	"cut":   func(id string) string { return "…" + id[max(0, len(id)-8):] },
	"since": func(t time.Time) string { return agoWords(time.Since(t)) },
	"seen": func(p PeerEntry) string {
		switch {
		case p.Self:
			return "this machine"
		case p.Path != nil:
			return "now"
		case p.LastSeen == nil:
			return "–"
		}
		return agoWords(time.Since(*p.LastSeen)) + " ago"
	},
	"date": func(t *time.Time) string { return t.Local().Format("2 Jan 15:04") },
}

func agoWords(d time.Duration) string {
	switch {
	case d < time.Minute:
		return "under a minute"
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}
