// Package clustertest boots whole clusters in the lab and tells stories with them.
package clustertest
