package daemon

import (
	"encoding/json"
	"time"
)

// The control API: one connection to the home's socket is one wish.
//
//	daemon ▶ Greeting
//	client ▶ Request                     one line of JSON each
//	daemon ▶ Event, Event, …             until "done" or "error"
//
// A wish that holds something open (expose, connect, status --watch) lasts as
// long as its connection: when the client goes, the wish ends. After the event
// "open" of `connect -` the connection carries the session's bytes.

// APIVersion counts changes that an older client or daemon would misread. Greeting, Request, the command "stop" and the
// events "done" and "error" never change: so that a new binary can end an old daemon.
const APIVersion = 1

// A Greeting is the daemon's first line.
type Greeting struct {
	API     int    `json:"api"`
	Version string `json:"fwd"`
	PID     int    `json:"pid"`
}

// A Request names a command; Args is the matching …Request below.
type Request struct {
	API     int             `json:"api"`
	Command string          `json:"command"`
	Args    json.RawMessage `json:"args,omitempty"`
}

// Args of the commands. Words (targets, local addresses, peers, services) are
// passed as the person wrote them; the daemon parses them.
type (
	// RelayRequest: run as a relay. Only by Run, never over the socket.
	RelayRequest struct {
		Listen   []string `json:"listen,omitempty"`   // "4001", "addr:4001", a multiaddr; default UDP and TCP 4001
		Announce []string `json:"announce,omitempty"` // HOST[:PORT]
		Uses     int      `json:"uses,omitempty"`     // of the first invite
		Invite   string   `json:"invite,omitempty"`   // join this network first
		Name     string   `json:"name,omitempty"`     // machine name on the roster; default: the host's name
		Keep     bool     `json:"keep,omitempty"`     // `fwd up` does it too
		Metrics  string   `json:"metrics,omitempty"`  // PORT of loopback or ADDR:PORT; empty: none
		Stderr   Stderr   `json:"-"`
	}
	// UpRequest: run what fwd.toml and --keep say. Only by Up, never over the socket.
	UpRequest struct {
		Config  string // path; empty: the home's own, which need not be there
		Invite  string // for a machine that is in no network yet
		Metrics string // stronger than fwd.toml's
		Stderr  Stderr
	}
	ReloadRequest struct{}
	NamesRequest  struct{}
	JoinRequest   struct {
		Invite string `json:"invite,omitempty"`
		As     string `json:"as,omitempty"`
		At     string `json:"at,omitempty"` // the relay's new HOST[:PORT]
	}
	InviteRequest struct {
		Uses    int           `json:"uses,omitempty"`    // 0: once
		Expires time.Duration `json:"expires,omitempty"` // of the code; 0: 24 h
		For     time.Duration `json:"for,omitempty"`     // of the access; 0: for good
		Only    []string      `json:"only,omitempty"`    // services: makes a guest
		Device  bool          `json:"device,omitempty"`
		Relay   bool          `json:"relay,omitempty"`
		At      string        `json:"at,omitempty"` // HOST[:PORT] at which the new relay waits for the owner to dial it
		Admin   bool          `json:"admin,omitempty"`
		Tags    []string      `json:"tags,omitempty"`
		Replace string        `json:"replace,omitempty"`
	}
	InvitesRequest struct{}
	// CancelInviteRequest: by the ID that InvitesRequest lists, or by the code.
	CancelInviteRequest struct {
		ID string `json:"id"`
	}
	ExposeRequest struct {
		Target string        `json:"target"`
		Name   string        `json:"name,omitempty"`
		Allow  []string      `json:"allow,omitempty"` // machine, peer ID, tag:T, members; empty: members
		Hold   time.Duration `json:"hold,omitempty"`  // 0: as long as all, which is the most
		Keep   bool          `json:"keep,omitempty"`  // `fwd up` does it too, from now on
		Tell   bool          `json:"tell,omitempty"`  // of each session, TCP's alone
	}
	UnexposeRequest struct {
		Name    string `json:"name"`
		Release bool   `json:"release,omitempty"` // give the short name back
	}
	ConnectRequest struct {
		Name    string        `json:"name"`
		Local   string        `json:"local,omitempty"`   // "2222", "addr:2222", "2222/udp", "unix:/path", "-"; empty: the target's own port or a free one
		Path    string        `json:"path,omitempty"`    // auto, direct, relay; empty: auto
		Timeout time.Duration `json:"timeout,omitempty"` // 0: wait for an offline peer
		Keep    bool          `json:"keep,omitempty"`    // `fwd up` does it too, from now on
		Tell    bool          `json:"tell,omitempty"`    // of each session, TCP's alone
	}
	// SocksRequest: take programs that speak SOCKS 5 to the services they name.
	SocksRequest struct {
		Local string `json:"local,omitempty"` // "1080", "addr:1080", unix:/path; empty: DefaultSocks
		Keep  bool   `json:"keep,omitempty"`
	}
	DisconnectRequest struct {
		Local   string `json:"local,omitempty"`
		Session string `json:"session,omitempty"`
	}
	LsRequest     struct{}
	StatusRequest struct {
		Watch bool `json:"watch,omitempty"` // a "status" event a second
	}
	PeersRequest struct{}
	PingRequest  struct {
		Name        string        `json:"name"`
		Count       int           `json:"count,omitempty"` // 0: until ended
		UntilDirect bool          `json:"until_direct,omitempty"`
		Timeout     time.Duration `json:"timeout,omitempty"` // for the first answer; 0: 30 s
	}
	SpeedRequest struct {
		Name string        `json:"name"`
		Path string        `json:"path,omitempty"` // auto: relay and direct; or one
		For  time.Duration `json:"for,omitempty"`  // each direction; 0: 3 s
	}
	RevokeRequest struct {
		Peer string `json:"peer"`
	}
	RenameRequest struct {
		Peer string `json:"peer"`
		Name string `json:"name"`
	}
	TrustRequest struct {
		Name string `json:"name"`
	}
	// AllowRequest is fwd allow, and with Deny fwd deny.
	AllowRequest struct {
		Service string `json:"service"`
		Who     string `json:"who"`
		Deny    bool   `json:"deny,omitempty"`
	}
	OwnerExportRequest struct {
		Passphrase string `json:"passphrase"`
	}
	OwnerImportRequest struct {
		Backup     []byte `json:"backup"`
		Passphrase string `json:"passphrase"`
	}
	OwnerMoveRequest struct {
		Peer string `json:"peer"`
	}
	// HandOverRequest: another machine takes this one's place, by name or peer ID.
	HandOverRequest struct {
		Peer string `json:"peer"`
	}
	OwnerSignRequest struct{}
	LeaveRequest     struct {
		Purge bool `json:"purge,omitempty"` // the identity key too
	}
	// PageRequest serves the page of `fwd ui` as long as the wish lasts.
	PageRequest struct {
		Token  string `json:"token"`            // the path's secret: the client's, so that a page outlives the daemon
		Port   int    `json:"port,omitempty"`   // of loopback; 0: a free one
		Manage bool   `json:"manage,omitempty"` // allow, deny, revoke, expose
	}
	// DebugRequest takes a profile of this process.
	DebugRequest struct {
		Profile string        `json:"profile"`       // see Profiles
		For     time.Duration `json:"for,omitempty"` // cpu and trace; 0: 10 s
	}
	StopRequest struct {
		IfIdle bool `json:"if_idle,omitempty"` // only a background daemon that holds no wish
	}
)

// An Event is one line of the daemon's answer. Long-running commands print
// them as they are with --json, so the names are stable.
//
//	progress   Message: one stage of the way ("looking up nas", "via relay vps 38 ms")
//	exposed    Service, Target, Peer, Names: the service is on offer
//	listening  Service, Peer, Local: connections are accepted
//	open       Service, Peer: what follows on this connection is the session's bytes
//	path       Service, Peer, Path: the way to the peer now; Path nil: none
//	session    Service, Peer, Session: one began (state "open") or ended ("closed"), for who asked to be told
//	pong       Peer, Path, Seq
//	invite     Invite, Message: the code and, for stderr, its story
//	waiting    Addrs, Message: a new relay listens for the owner to dial it
//	relay      Peer, Addrs: the relay is up
//	page       URL: it is served
//	profile    Result: the next piece of the bytes that DebugRequest asked for
//	status, ls, peers, invites, doctor, speed, result   Result: the command's one answer
//	wish-failed  Wish, Failure: it is tried again (the wish "relay": at the next start)
//	error      Failure: the last, as "done"
//	done
type Event struct {
	Event   string          `json:"event"`
	Message string          `json:"message,omitempty"`
	Service string          `json:"service,omitempty"`
	Machine string          `json:"machine,omitempty"`
	Peer    string          `json:"peer,omitempty"`
	Target  string          `json:"target,omitempty"`
	Local   string          `json:"local,omitempty"`
	Names   []string        `json:"names,omitempty"` // what connect may call the service, shortest first
	Port    int             `json:"port,omitempty"`  // the target's own, to tell how to use it
	Addrs   []string        `json:"addrs,omitempty"`
	Invite  string          `json:"invite,omitempty"`
	URL     string          `json:"url,omitempty"` // of the page
	Path    *Path           `json:"path,omitempty"`
	Session *Session        `json:"session,omitempty"`
	Seq     int             `json:"seq,omitempty"`
	Wish    string          `json:"wish,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	*Failure
}

// Exit codes, as told in every command's help.
const (
	ExitFailed          = 1
	ExitUsage           = 2
	ExitUnknownName     = 3 // not on the roster: do not retry
	ExitRefused         = 4 // a bad invite included
	ExitIdentityChanged = 5 // do not retry
	ExitUnreachable     = 6 // known, but not reached in time: retry
	ExitLocalPort       = 7
	ExitNoDaemon        = 8
)

// A Failure is an error as a person and a script are told it: what was tried,
// the command that mends it, a stable code, and the exit status.
type Failure struct {
	Code string `json:"code"` // usage, unknown-name, refused, invite-used, …
	What string `json:"error"`
	Hint string `json:"hint,omitempty"`
	Exit int    `json:"exit"`
}

func (f *Failure) Error() string { return f.What }

// Path is how a peer is reached now.
type Path struct {
	Kind      string    `json:"kind"`      // direct, relay
	Transport string    `json:"transport"` // quic-v1, tcp, wss
	Remote    string    `json:"remote"`    // multiaddr
	Relay     string    `json:"relay"`     // the relay's name, or its peer ID
	RTT       float64   `json:"rtt_ms"`
	Since     time.Time `json:"since"`
	Reason    string    `json:"reason"` // why not direct
	Bulk      string    `json:"bulk"`   // multiaddr by which what moves much goes; empty: the same way
	Spread    int       `json:"spread"` // how many QUIC connections what moves much can go by; 0: it is not spread
}

// Status is one snapshot of a running fwd.
type Status struct {
	V        int             `json:"v"`
	Peer     string          `json:"peer"`
	Name     string          `json:"name"`
	Version  string          `json:"version"`
	PID      int             `json:"pid"`
	Network  *NetworkStatus  `json:"network"`
	NAT      NATStatus       `json:"nat"`
	Relays   []RelayStatus   `json:"relays"`
	Services []ServiceStatus `json:"services"`
	Forwards []ForwardStatus `json:"forwards"`
	Sessions []Session       `json:"sessions"`
	Warnings []string        `json:"warnings"`           // what a person should know: "… (key-in-use-twice)"
	Wishes   []WishStatus    `json:"wishes"`             // what the daemon keeps up by itself (fwd up)
	Relaying *RelayingStatus `json:"relaying,omitempty"` // this machine is a relay
	Paths    []PathStatus    `json:"paths"`              // to the peers that sessions and forwards are with
	Traffic  TrafficStatus   `json:"traffic"`
}

type NetworkStatus struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Epoch uint64 `json:"epoch"`
	Term  uint64 `json:"term"`
	Role  string `json:"role"`
}

type NATStatus struct {
	Reachability string   `json:"reachability"` // public, private
	UDP          string   `json:"udp"`          // endpoint-independent, endpoint-dependent, none, blocked, unknown
	TCP          string   `json:"tcp"`
	Filtering    string   `json:"filtering"` // endpoint-independent, address-dependent (or less: one relay), address-and-port-dependent, unknown
	Ports        string   `json:"ports"`     // of new flows: kept, changed, sequential, block, random, unknown
	DoubleNAT    bool     `json:"double_nat"`
	IPv6         bool     `json:"ipv6"`
	PortMapping  string   `json:"port_mapping"` // none, found (a router that maps, but has no public address), mapped
	PublicAddrs  []string `json:"public_addrs"`
}

type RelayStatus struct {
	Peer      string  `json:"peer"`
	Name      string  `json:"name"`
	Connected bool    `json:"connected"`
	Reserved  bool    `json:"reserved"`
	RTT       float64 `json:"rtt_ms"`
}

type ServiceStatus struct {
	Name     string   `json:"name"`
	Target   string   `json:"target"`
	Allow    []string `json:"allow"`
	Sessions int      `json:"sessions"`
	From     string   `json:"from"` // command, kept, config
	Rate     Rate     `json:"rate"`
}

type ForwardStatus struct {
	Service  string `json:"service"` // of a SOCKS entry "*.fwd"; its peer and machine are empty
	Peer     string `json:"peer"`
	Local    string `json:"local"`
	Sessions int    `json:"sessions"`
	From     string `json:"from"` // command, kept, config
	Path     *Path  `json:"path"`
	Machine  string `json:"machine"`
	Rate     Rate   `json:"rate"`
}

// Session is one forwarded connection, seen from either end.
type Session struct {
	ID         string    `json:"id"`
	Service    string    `json:"service"`
	Machine    string    `json:"machine"`
	Peer       string    `json:"peer"`
	Role       string    `json:"role"`               // entry, exit
	State      string    `json:"state"`              // open, detached, closed
	Protocol   string    `json:"protocol,omitempty"` // udp: a flow of datagrams
	Dropped    int64     `json:"dropped,omitempty"`  // datagrams that found no room on their way, or came too late
	Path       string    `json:"path"`               // direct, relay, "" while detached
	Sent       int64     `json:"sent"`
	Received   int64     `json:"received"`
	Migrations int       `json:"migrations"`
	Opened     time.Time `json:"opened"`

	Since    *time.Time `json:"since,omitempty"`     // detached since
	WaitsFor string     `json:"waits_for,omitempty"` // what would bring a detached one back
	HeldTill *time.Time `json:"held_till,omitempty"` // then it is reset
}

type RelayingStatus struct {
	Addrs        []string `json:"addrs"`
	Reservations int      `json:"reservations"`
	Circuits     int      `json:"circuits"`
	Bytes        int64    `json:"bytes"` // relayed since the start, each byte once
}

// LsEntry is one service that this machine may use.
type LsEntry struct {
	Service string `json:"service"` // the name to connect with: short if this network has given it, else long
	Long    string `json:"long"`    // service.machine
	Machine string `json:"machine"`
	Peer    string `json:"peer"`
	State   string `json:"state"` // online, offline
	Port    int    `json:"port,omitempty"`
	Last    int    `json:"last_port,omitempty"` // of a range that begins with Port
	UDP     bool   `json:"udp,omitempty"`       // datagrams; the same name may be there for TCP too
	Path    *Path  `json:"path"`
}

// PeerEntry is one line of the roster.
type PeerEntry struct {
	Name     string     `json:"name"`
	Peer     string     `json:"peer"`
	Role     string     `json:"role"` // owner, admin, member, device, guest, relay
	Caps     []string   `json:"capabilities"`
	Tags     []string   `json:"tags"`
	Expires  *time.Time `json:"expires"`
	Self     bool       `json:"self"`
	LastSeen *time.Time `json:"last_seen"`
	Version  string     `json:"version"`
	Epoch    uint64     `json:"epoch"` // the roster it was last seen with
	Path     *Path      `json:"path"`
}

// Joined is join's answer.
type Joined struct {
	Network string `json:"network"`
	Name    string `json:"name"` // this machine's
	Peer    string `json:"peer"`
	Again   bool   `json:"again"`         // it already belonged
	Use     string `json:"use,omitempty"` // for -n; empty: this machine's first network
}
