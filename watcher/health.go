package watcher

import "time"

// Health is how a cluster's API server does, for people.
type Health struct {
	Cluster string `json:"cluster,omitempty"` // name in the configuration
	Server  string `json:"server"`            // URL
	// Up says that the last request for each kind was answered, and that all that may be read is being watched.
	Up bool `json:"up"`
	// LastContact is when the API server last sent something; zero if it never did.
	LastContact time.Time `json:"lastContact,omitzero"`
	// LastError is what failed last, empty while Up.
	LastError string `json:"lastError,omitempty"`
	// CredentialExpiry is when the credentials end, zero if they do not say.
	CredentialExpiry time.Time `json:"credentialExpiry,omitzero"`
	// File is the last-good file, empty if there is none; LastGood's, as the two that follow.
	File string `json:"file,omitempty"`
	// Written is when the file was last written by this process or, before that, by an earlier one.
	Written time.Time `json:"written,omitzero"`
	// Stale says that the objects are the file's.
	Stale bool `json:"stale,omitempty"`
}
