//go:build linux

package fwdtest

import "time"

// The shapes of --json, as far as the tests read them. They are written down here once more instead of taken from
// the daemon, so that a field that is renamed there breaks a test here, as it would break somebody's script.

// Event is one line of a command that goes on.
type Event struct {
	Event   string   `json:"event"`
	Message string   `json:"message"`
	Service string   `json:"service"`
	Peer    string   `json:"peer"`
	Local   string   `json:"local"`
	Addrs   []string `json:"addrs"`
	Invite  string   `json:"invite"`
	Path    *Path    `json:"path"`
	Session *Session `json:"session"`
	Code    string   `json:"code"`
	Error   string   `json:"error"`
	Hint    string   `json:"hint"`
	Exit    int      `json:"exit"`
}

// Path is how a peer is reached.
type Path struct {
	Kind      string    `json:"kind"`
	Transport string    `json:"transport"`
	Remote    string    `json:"remote"`
	Relay     string    `json:"relay"`
	RTT       float64   `json:"rtt_ms"`
	Since     time.Time `json:"since"`
	Reason    string    `json:"reason"`
	Bulk      string    `json:"bulk"`
}

// Session is one forwarded connection.
type Session struct {
	ID         string `json:"id"`
	Service    string `json:"service"`
	Peer       string `json:"peer"`
	Role       string `json:"role"`
	State      string `json:"state"`
	Path       string `json:"path"`
	Sent       int64  `json:"sent"`
	Received   int64  `json:"received"`
	Migrations int    `json:"migrations"`
	WaitsFor   string `json:"waits_for"`
}

// Status is fwd status --json.
type Status struct {
	V       int    `json:"v"`
	Peer    string `json:"peer"`
	Name    string `json:"name"`
	PID     int    `json:"pid"`
	Network *struct {
		ID    string `json:"id"`
		Name  string `json:"name"`
		Epoch uint64 `json:"epoch"`
		Role  string `json:"role"`
	} `json:"network"`
	Warnings []string `json:"warnings"`
	NAT      struct {
		Reachability string   `json:"reachability"`
		UDP          string   `json:"udp"`
		TCP          string   `json:"tcp"`
		Filtering    string   `json:"filtering"`
		PortMapping  string   `json:"port_mapping"`
		PublicAddrs  []string `json:"public_addrs"`
	} `json:"nat"`
	Relays []struct {
		Peer      string  `json:"peer"`
		Name      string  `json:"name"`
		Connected bool    `json:"connected"`
		Reserved  bool    `json:"reserved"`
		RTT       float64 `json:"rtt_ms"`
	} `json:"relays"`
	Services []struct {
		Name     string   `json:"name"`
		Target   string   `json:"target"`
		Allow    []string `json:"allow"`
		Sessions int      `json:"sessions"`
	} `json:"services"`
	Forwards []struct {
		Service  string `json:"service"`
		Peer     string `json:"peer"`
		Local    string `json:"local"`
		Sessions int    `json:"sessions"`
		Path     *Path  `json:"path"`
	} `json:"forwards"`
	Sessions []Session `json:"sessions"`
	Relaying *struct {
		Addrs        []string `json:"addrs"`
		Reservations int      `json:"reservations"`
		Circuits     int      `json:"circuits"`
	} `json:"relaying"`
}
